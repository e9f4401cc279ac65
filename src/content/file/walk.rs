//! The walk over the leaves of a range, in file order.

use super::{ByteRange, FileLayout, Need, interior::Child};

/// A node that the walk is in.
#[derive(Clone, Copy, Debug)]
struct Frame {
    /// Number of the node.
    node: usize,
    /// Where its content begins in the file.
    base: u64,
    /// Offset in its content up to which the walk has come.
    done: u64,
}

/// The answer of [`FileLayout::needs_iter`]. Each step costs a binary search per level.
#[derive(Clone, Debug)]
pub struct Needs<'a> {
    layout: &'a FileLayout,
    window: ByteRange,
    /// Never deeper than the tree may be.
    stack: Vec<Frame>,
    /// The root, when it is the only block.
    root: Option<Need>,
}

impl<'a> Needs<'a> {
    pub(super) fn new(layout: &'a FileLayout, range: ByteRange) -> Self {
        let whole = ByteRange::new(0, layout.size);
        let window = range.intersect(whole);
        let mut walk = Self { layout, window, stack: Vec::new(), root: None };
        if layout.nodes.is_empty() {
            let need = Need { cid: layout.root, range: whole };
            walk.root = (!window.is_empty()).then_some(need);
        } else if !window.is_empty() {
            walk.stack.push(Frame { node: 0, base: 0, done: window.start });
        }
        walk
    }
}

impl Iterator for Needs<'_> {
    type Item = Need;

    fn next(&mut self) -> Option<Need> {
        if let Some(need) = self.root.take() {
            return Some(need);
        }
        while let Some(frame) = self.stack.last_mut() {
            let node = &self.layout.nodes[frame.node];
            let at = node.child_behind(frame.done);
            if at == node.len() {
                self.stack.pop();
                continue;
            }
            let inner = node.child_range(at);
            let range = ByteRange::new(frame.base + inner.start, frame.base + inner.end);
            if range.start >= self.window.end {
                self.stack.clear();
                return None;
            }
            frame.done = inner.end;
            match node.child(at) {
                Child::Node(number) => {
                    let done = self.window.start.saturating_sub(range.start);
                    self.stack.push(Frame { node: number as usize, base: range.start, done });
                }
                Child::Leaf | Child::Unknown => {
                    if let Some(cid) = node.child_cid(at) {
                        return Some(Need { cid, range });
                    }
                }
            }
        }
        None
    }
}
