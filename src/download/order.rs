//! In which order the blocks of a background download are asked for.

use rand::seq::SliceRandom;

use super::Strategy;

/// Positions of blocks in the order of `strategy`. `holders[i]` is how many sources are known to have block `i`;
/// where nothing is known, rarest-first is in order.
pub(super) fn order(strategy: Strategy, holders: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..holders.len()).collect();
    match strategy {
        Strategy::Streaming | Strategy::Sequential => {}
        // A block that nobody has would be the rarest; it can only be waited for, so it comes last.
        // The sort is stable: among equally rare blocks the file's order stays.
        Strategy::RarestFirst => {
            order.sort_by_key(|&i| if holders[i] == 0 { usize::MAX } else { holders[i] });
        }
        Strategy::Random => order.shuffle(&mut rand::rng()),
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rarest_first_takes_what_one_peer_has_before_what_all_have() {
        let peers: [&[usize]; 3] = [&[0, 1, 2], &[0, 1, 3], &[0, 1]];
        let holders: Vec<usize> =
            (0..4).map(|block| peers.iter().filter(|has| has.contains(&block)).count()).collect();
        assert_eq!(order(Strategy::RarestFirst, &holders), [2, 3, 0, 1]);
    }

    #[test]
    fn what_nobody_has_comes_last() {
        assert_eq!(order(Strategy::RarestFirst, &[0, 2, 1]), [2, 1, 0]);
    }

    #[test]
    fn sequential_keeps_the_order_and_random_keeps_the_blocks() {
        assert_eq!(order(Strategy::Sequential, &[1, 9, 3]), [0, 1, 2]);
        let mut random = order(Strategy::Random, &[1; 100]);
        random.sort_unstable();
        assert!(random.into_iter().eq(0..100));
    }
}
