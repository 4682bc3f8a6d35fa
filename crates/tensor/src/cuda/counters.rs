//! Little scratch memory of launches that are recorded. cuBLASLt and cuDNN set a counter to zero before some of their kernels,
//! in an operation of its own between two kernels that would follow each other at once, 338 times in a step of SDXL. Here
//! every such launch of a recording has a counter of its own, and all of them are set to zero at the recording's beginning:
//! 40.6 instead of 41.0 ms a step on an H200.

use super::gpu::{Gpu, lock, records};
use super::memory::Buffer;
use crate::Result;
use cudarc::driver::sys;
use std::collections::{BTreeSet, HashSet};

/// Bytes of a place; scratch memory that needs more is shared.
const PLACE: usize = 256;
/// Places of a recording; later launches share their scratch memory.
const PLACES: usize = 2048;

/// The places of the recording that is being made.
pub(super) struct Counters {
    memory: Buffer,
    used: usize,
}

impl Gpu {
    /// From now on launches that are recorded get places.
    pub(super) fn begin_counters(&'static self) -> Result<()> {
        let memory = self.allocate(PLACE * PLACES)?;
        *lock(&self.counters) = Some(Counters { memory, used: 0 });
        Ok(())
    }

    /// From now on none gets a place.
    pub(super) fn end_counters(&self) -> Option<Counters> {
        lock(&self.counters).take()
    }

    /// Scratch memory of `bytes` that nothing but the launch asked for next uses; none where it is not recorded, needs more
    /// than a place has, or no place is left.
    pub(super) fn counter(&self, bytes: usize) -> Option<u64> {
        if !records() || !(1..=PLACE).contains(&bytes) {
            return None;
        }
        let mut counters = lock(&self.counters);
        let counters = counters.as_mut().filter(|counters| counters.used < PLACES)?;
        counters.used += 1;
        Some(counters.memory.address() + ((counters.used - 1) * PLACE) as u64)
    }
}

/// A node of a graph, as the driver knows it.
type Node = sys::CUgraphNode;
/// From which node to which, as numbers, so that they have an order.
type Edge = (usize, usize);

impl Counters {
    /// Replaces all operations of a graph that set places to zero by one at its beginning, on which everything waits; the
    /// memory, which must live as long as the graph. A graph about which the driver does not tell all is left as it is.
    pub(super) fn gather(self, gpu: &Gpu, graph: sys::CUgraph) -> Result<Buffer> {
        let places = self.memory.address()..self.memory.address() + (self.used * PLACE) as u64;
        let zeroes = |node: &Node| {
            let mut kind = sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_EMPTY;
            // SAFETY: the node is one of the graph's; results go to places of their types.
            unsafe {
                let mut what: sys::CUDA_MEMSET_NODE_PARAMS = std::mem::zeroed();
                done(sys::cuGraphNodeGetType(*node, &mut kind)).is_some()
                    && kind == sys::CUgraphNodeType::CU_GRAPH_NODE_TYPE_MEMSET
                    && done(sys::cuGraphMemsetNodeGetParams(*node, &mut what)).is_some()
                    && what.value == 0
                    && places.contains(&what.dst)
            }
        };
        let Some((nodes, edges)) = (self.used > 0).then(|| parts(graph)).flatten() else { return Ok(self.memory) };
        let gone: Vec<Node> = nodes.iter().filter(|node| zeroes(node)).copied().collect();
        if gone.is_empty() {
            return Ok(self.memory);
        }
        let numbers = |nodes: &[Node]| nodes.iter().map(|&node| node as usize).collect::<Vec<_>>();
        let (added, first) = without(&numbers(&nodes), &edges, &numbers(&gone));
        let (from, to): (Vec<Node>, Vec<Node>) = added.into_iter().map(|(from, to)| (from as Node, to as Node)).unzip();
        let first: Vec<Node> = first.into_iter().map(|node| node as Node).collect();
        let all = sys::CUDA_MEMSET_NODE_PARAMS {
            dst: self.memory.address(),
            pitch: 0,
            value: 0,
            elementSize: 4,
            width: self.used * PLACE / 4,
            height: 1,
        };
        let changed = |result| gpu.check("gathering a recording's counters", result);
        // SAFETY: the nodes are the graph's own, destroyed once; lists are as long as the calls are told; an operation on the
        // places alone waits for nothing.
        unsafe {
            let mut one = std::ptr::null_mut();
            for node in gone {
                changed(sys::cuGraphDestroyNode(node))?;
            }
            let no_data = std::ptr::null();
            changed(sys::cuGraphAddDependencies_v2(graph, from.as_ptr(), to.as_ptr(), no_data, from.len()))?;
            changed(sys::cuGraphAddMemsetNode(&mut one, graph, std::ptr::null(), 0, &all, gpu.context))?;
            let ones = vec![one; first.len()];
            changed(sys::cuGraphAddDependencies_v2(graph, ones.as_ptr(), first.as_ptr(), no_data, first.len()))?;
        }
        Ok(self.memory)
    }
}

fn done(result: sys::CUresult) -> Option<()> {
    (result == sys::CUresult::CUDA_SUCCESS).then_some(())
}

/// What a graph needs when some nodes are taken out of it: edges to be added, so that what waited for them waits for what they
/// waited for, and the nodes that then wait for nothing.
fn without(nodes: &[usize], edges: &[Edge], gone: &[usize]) -> (Vec<Edge>, Vec<usize>) {
    let known: BTreeSet<Edge> = edges.iter().copied().collect();
    let mut left = known.clone();
    for &node in gone {
        let before: Vec<usize> = left.iter().filter(|edge| edge.1 == node).map(|edge| edge.0).collect();
        let after: Vec<usize> = left.range((node, 0)..=(node, usize::MAX)).map(|edge| edge.1).collect();
        left.extend(before.iter().flat_map(|&from| after.iter().map(move |&to| (from, to))));
        left.retain(|&(from, to)| from != node && to != node);
    }
    let wait: HashSet<usize> = left.iter().map(|edge| edge.1).collect();
    let first = nodes.iter().filter(|node| !gone.contains(node) && !wait.contains(node)).copied().collect();
    (left.difference(&known).copied().collect(), first)
}

/// The first driver that tells edges with what is known of them.
const DRIVER: i32 = 12030;

/// Nodes and edges of a graph.
fn parts(graph: sys::CUgraph) -> Option<(Vec<Node>, Vec<Edge>)> {
    let none = std::ptr::null_mut();
    // SAFETY: the graph is alive; the first call of a pair tells how long the lists of the second must be.
    unsafe {
        let (mut count, mut version) = (0, 0);
        done(sys::cuDriverGetVersion(&mut version))?;
        (version >= DRIVER).then_some(())?;
        done(sys::cuGraphGetNodes(graph, none, &mut count))?;
        let mut nodes = vec![std::ptr::null_mut(); count];
        done(sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &mut count))?;
        done(sys::cuGraphGetEdges_v2(graph, none, none, std::ptr::null_mut(), &mut count))?;
        let (mut from, mut to) = (vec![std::ptr::null_mut(); count], vec![std::ptr::null_mut(); count]);
        let mut data = vec![std::mem::zeroed::<sys::CUgraphEdgeData>(); count];
        done(sys::cuGraphGetEdges_v2(graph, from.as_mut_ptr(), to.as_mut_ptr(), data.as_mut_ptr(), &mut count))?;
        Some((nodes, from.iter().zip(&to).map(|(from, to)| (*from as usize, *to as usize)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waited_for_a_node_waits_for_what_it_waited_for() {
        // 1 sets to zero for 2; 3 and 4, one after the other, for 5; 6 waits for both; 7 is alone.
        let edges = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (2, 6), (5, 6)];
        let nodes: Vec<usize> = (0..8).collect();
        assert_eq!(without(&nodes, &edges, &[1, 3, 4]), (vec![(0, 2), (2, 5)], vec![0, 7]));
        // A node that was first leaves its own followers first; an edge that is there is not added again.
        assert_eq!(without(&[0, 1, 2, 3], &[(0, 1), (1, 2), (1, 3), (2, 3)], &[0, 2]), (vec![], vec![1]));
        assert_eq!(without(&[0, 1], &[(0, 1)], &[]), (vec![], vec![0]));
    }
}
