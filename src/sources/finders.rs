//! Several ways to find sources as one: all are asked at once.

use std::{pin::Pin, sync::Arc};

use futures::{
    Stream, StreamExt,
    stream::{self, SelectAll},
};
use tokio::sync::mpsc;

use super::{Finder, Found};
use crate::{content::ContentId, tasks::Tasks};

/// News that may wait for the receiver.
const BACKLOG: usize = 16;

/// What a finder says, behind its number; none when it has ended.
type News = Pin<Box<dyn Stream<Item = (usize, Option<Found>)> + Send>>;

/// Asks several finders. Everybody was asked once when each of them has said so, or has ended.
#[derive(Clone, Debug)]
pub struct Finders {
    finders: Vec<Arc<dyn Finder>>,
    tasks: Tasks,
}

impl Finders {
    /// All of `finders` as one.
    pub fn new(finders: Vec<Arc<dyn Finder>>, tasks: &Tasks) -> Self {
        Self { finders, tasks: tasks.clone() }
    }
}

impl Finder for Finders {
    fn find(&self, root: &ContentId) -> mpsc::Receiver<Found> {
        let news = self.finders.iter().enumerate().map(|(at, finder)| news(at, finder.find(root)));
        let (found, receiver) = mpsc::channel(BACKLOG);
        let merge = merge(news.collect(), self.finders.len(), found);
        let cancelled = self.tasks.cancelled();
        self.tasks.spawn("merge-finders", async move {
            tokio::select! {
                () = cancelled => {}
                () = merge => {}
            }
        });
        receiver
    }

    fn ask_again(&self, root: &ContentId) {
        self.finders.iter().for_each(|finder| finder.ask_again(root));
    }

    fn arrived(&self, block: &ContentId) {
        self.finders.iter().for_each(|finder| finder.arrived(block));
    }
}

fn news(at: usize, from: mpsc::Receiver<Found>) -> News {
    let said = stream::unfold(from, async |mut from| Some((from.recv().await?, from)));
    let said = said.map(move |found| (at, Some(found)));
    Box::pin(said.chain(stream::once(async move { (at, None) })))
}

async fn merge(mut news: SelectAll<News>, count: usize, to: mpsc::Sender<Found>) {
    let mut asked = vec![false; count];
    loop {
        let (at, found) = tokio::select! {
            () = to.closed() => return,
            news = news.next() => match news {
                Some(news) => news,
                None => return,
            },
        };
        let found = match found {
            Some(Found::Searched) | None => {
                let before = asked.iter().all(|asked| *asked);
                asked[at] = true;
                // Later rounds are told as they end; who asks for another does not wait for the slowest.
                let tell = if before { found.is_some() } else { asked.iter().all(|asked| *asked) };
                tell.then_some(Found::Searched)
            }
            found => found,
        };
        if let Some(found) = found
            && to.send(found).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use std::sync::Mutex;

    use super::*;
    use crate::{content::Block, sources::SourceId};

    /// Says what a test tells it to.
    #[derive(Debug, Default)]
    struct Told {
        to: Mutex<Option<mpsc::Sender<Found>>>,
        again: Mutex<usize>,
    }

    impl Told {
        fn says(&self, found: Found) {
            self.to.lock().unwrap().as_ref().unwrap().try_send(found).unwrap();
        }
    }

    impl Finder for Told {
        fn find(&self, _root: &ContentId) -> mpsc::Receiver<Found> {
            let (to, receiver) = mpsc::channel(4);
            *self.to.lock().unwrap() = Some(to);
            receiver
        }
        fn ask_again(&self, _root: &ContentId) {
            *self.again.lock().unwrap() += 1;
        }
    }

    fn gone(name: &str) -> Found {
        Found::Gone(SourceId(name.into()))
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_all_come_as_one_and_everybody_was_asked_when_all_were() {
        let (one, two) = (Arc::new(Told::default()), Arc::new(Told::default()));
        let finders = Finders::new(vec![one.clone(), two.clone()], &Tasks::new());
        let root = *Block::raw(bytes::Bytes::new()).cid();
        let mut found = finders.find(&root);
        one.says(Found::Searched);
        one.says(gone("a"));
        assert!(matches!(found.recv().await, Some(Found::Gone(id)) if &*id.0 == "a"));
        two.says(gone("b"));
        two.says(Found::Searched);
        assert!(matches!(found.recv().await, Some(Found::Gone(id)) if &*id.0 == "b"));
        assert!(matches!(found.recv().await, Some(Found::Searched)));
        finders.ask_again(&root);
        assert_eq!((*one.again.lock().unwrap(), *two.again.lock().unwrap()), (1, 1));
        one.says(Found::Searched);
        assert!(matches!(found.recv().await, Some(Found::Searched)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_finder_that_ends_holds_nobody_up_and_all_end_with_the_receiver() {
        let (one, two) = (Arc::new(Told::default()), Arc::new(Told::default()));
        let tasks = Tasks::new();
        let finders = Finders::new(vec![one.clone(), two.clone()], &tasks);
        let mut found = finders.find(Block::raw(bytes::Bytes::new()).cid());
        two.says(Found::Searched);
        one.to.lock().unwrap().take();
        assert!(matches!(found.recv().await, Some(Found::Searched)));
        drop(found);
        let listening = two.to.lock().unwrap().take().unwrap();
        listening.closed().await;
        assert!(tasks.shutdown(std::time::Duration::from_secs(1)).await.is_empty());
    }
}
