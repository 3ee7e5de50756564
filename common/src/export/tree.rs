//! Stacks merged from their roots: what a flame graph draws.

use std::collections::HashMap;

use crate::stack::Kind;

/// One frame of the picture: all stacks that begin alike up to it.
#[derive(Clone, Debug)]
pub struct Node {
    /// Index of its name in [`Tree::names`].
    pub name: usize,
    /// What it is a frame of.
    pub kind: Kind,
    /// The frame below it; the root's is itself.
    pub parent: usize,
    /// Distance from the root.
    pub level: usize,
    /// What was counted with this frame, on either side of a comparison; a plain graph has only the first.
    pub total: [u64; 2],
    /// What was counted with this frame as the innermost.
    pub own: [u64; 2],
}

/// Where a node is drawn.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Place {
    /// Where it begins, in the unit of the values.
    pub start: u64,
    /// How wide it is.
    pub width: u64,
}

/// The merged stacks. A node comes after its parent.
#[derive(Debug)]
pub struct Tree {
    names: Vec<String>,
    known: HashMap<String, usize>,
    nodes: Vec<Node>,
    edges: HashMap<(usize, usize, Kind), usize>,
}

impl Tree {
    /// A tree without stacks, whose root has this name.
    pub fn new(root: &str) -> Self {
        let node = Node { name: 0, kind: Kind::Task, parent: 0, level: 0, total: [0; 2], own: [0; 2] };
        Self {
            names: vec![root.to_owned()],
            known: HashMap::from([(root.to_owned(), 0)]),
            nodes: vec![node],
            edges: HashMap::new(),
        }
    }

    /// Add what was counted with one stack, outermost frame first, on one `side`.
    pub fn add<'a>(&mut self, stack: impl Iterator<Item = (&'a str, Kind)>, side: usize, value: u64) {
        let mut at = 0;
        let count = |slot: &mut u64| *slot = slot.saturating_add(value);
        count(&mut self.nodes[at].total[side]);
        for (name, kind) in stack {
            let name = match self.known.get(name) {
                Some(known) => *known,
                None => {
                    self.known.insert(name.to_owned(), self.names.len());
                    self.names.push(name.to_owned());
                    self.names.len() - 1
                }
            };
            let (parent, next) = (at, self.nodes.len());
            at = *self.edges.entry((parent, name, kind)).or_insert(next);
            if at == next {
                let level = self.nodes[parent].level + 1;
                self.nodes.push(Node { name, kind, parent, level, total: [0; 2], own: [0; 2] });
            }
            count(&mut self.nodes[at].total[side]);
        }
        count(&mut self.nodes[at].own[side]);
    }

    /// All nodes, the root first.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The name of a node.
    pub fn name(&self, node: &Node) -> &str {
        &self.names[node.name]
    }

    /// Where each node is drawn, its siblings in the order of their names: `width` is that of what was counted with a
    /// node as the innermost.
    pub fn places(&self, width: impl Fn(&Node) -> u64) -> Vec<Place> {
        // Without recursion: what is read from a file may be as deep as it likes.
        let mut places: Vec<Place> = self.nodes.iter().map(|node| Place { start: 0, width: width(node) }).collect();
        for (index, node) in self.nodes.iter().enumerate().skip(1).rev() {
            places[node.parent].width = places[node.parent].width.saturating_add(places[index].width);
        }
        let mut order: Vec<usize> = (1..self.nodes.len()).collect();
        order.sort_by(|a, b| {
            let key = |index: usize| {
                let node = &self.nodes[index];
                (node.level, node.parent, self.name(node), node.kind)
            };
            key(*a).cmp(&key(*b))
        });
        let mut taken = vec![0; self.nodes.len()];
        for index in order {
            let parent = self.nodes[index].parent;
            // What is saturated has no more room for what else there is.
            places[index].start = places[parent].start.saturating_add(taken[parent]);
            taken[parent] = taken[parent].saturating_add(places[index].width);
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_that_begin_alike_share_frames() {
        let mut tree = Tree::new("all");
        for (stack, value) in [("a;b;c", 5), ("a;b", 2), ("a;aa", 1), ("z", 4), ("a;b;c", 1)] {
            tree.add(stack.split(';').map(|name| (name, Kind::User)), 0, value);
        }
        assert_eq!(tree.nodes().len(), 6);
        let places = tree.places(|node| node.own[0]);
        let place = |name: &str| {
            let index = tree.nodes().iter().position(|node| tree.name(node) == name).unwrap();
            (tree.nodes()[index].level, places[index].start, places[index].width, tree.nodes()[index].own[0])
        };
        assert_eq!(place("all"), (0, 0, 13, 0));
        assert_eq!(place("a"), (1, 0, 9, 0));
        assert_eq!(place("aa"), (2, 0, 1, 1));
        assert_eq!(place("b"), (2, 1, 8, 2));
        assert_eq!(place("c"), (3, 1, 6, 6));
        assert_eq!(place("z"), (1, 9, 4, 4));
    }

    #[test]
    fn a_frame_of_the_kernel_is_not_one_of_the_user() {
        let mut tree = Tree::new("all");
        tree.add([("read", Kind::User), ("read", Kind::Kernel)].into_iter(), 0, 1);
        tree.add([("read", Kind::Kernel)].into_iter(), 1, 1);
        assert_eq!(tree.nodes().len(), 4);
        assert_eq!(tree.nodes()[0].total, [1, 1]);
    }

    #[test]
    fn counts_of_any_size_are_drawn() {
        let mut tree = Tree::new("all");
        for name in ["a", "b", "c"] {
            tree.add([(name, Kind::User), ("x", Kind::User)].into_iter(), 0, u64::MAX - 1);
        }
        assert_eq!(tree.places(|node| node.own[0])[0], Place { start: 0, width: u64::MAX });
    }

    #[test]
    fn a_stack_of_any_depth_is_drawn() {
        let mut tree = Tree::new("all");
        tree.add((0..200_000).map(|_| ("f", Kind::User)), 0, 3);
        assert_eq!(tree.places(|node| node.own[0])[200_000], Place { start: 0, width: 3 });
    }
}
