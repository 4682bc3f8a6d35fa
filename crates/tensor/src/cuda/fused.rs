//! Long attention by cuDNN's graph interface: on a Hopper 513 TFLOP/s at 4096 positions of 10 heads of 64 in f16, where
//! this crate's own kernel reaches 224.

use super::conv::Dnn;
use super::gpu::{Gpu, lock, records};
use super::profile::Work;
use crate::{DType, Result};
use cudarc::cudnn::sys as dnn;
use dnn::cudnnBackendAttributeName_t as A;
use dnn::cudnnBackendAttributeType_t as T;
use dnn::cudnnBackendDescriptorType_t as D;
use std::ffi::c_void;

/// One branch of attention over pictures: what tells it from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) b: usize,
    pub(super) heads: usize,
    /// Queries and keys.
    pub(super) n: usize,
    pub(super) m: usize,
    /// Width of a head.
    pub(super) d: usize,
    /// Numbers from one row to the next, of queries, of keys and values, and of the result.
    pub(super) strides: [usize; 3],
    pub(super) dtype: DType,
}

/// A description of the library's, freed when dropped.
struct Description(dnn::cudnnBackendDescriptor_t);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by the library, freed once.
        unsafe { dnn::cudnnBackendDestroyDescriptor(self.0) };
    }
}

fn ok(status: dnn::cudnnStatus_t) -> Option<()> {
    (status == dnn::cudnnStatus_t::CUDNN_STATUS_SUCCESS).then_some(())
}

impl Description {
    fn new(kind: D) -> Option<Description> {
        let mut made = std::ptr::null_mut();
        // SAFETY: the result goes to a place of its type.
        ok(unsafe { dnn::cudnnBackendCreateDescriptor(kind, &mut made) })?;
        Some(Description(made))
    }

    /// Sets an attribute of numbers of the library's type `kind`, of which `V` has the size.
    fn set<V>(self, name: A, kind: T, values: &[V]) -> Option<Description> {
        // SAFETY: the library reads as many numbers as it is told, of the type that the callers below pair with it.
        ok(unsafe {
            dnn::cudnnBackendSetAttribute(self.0, name, kind, values.len() as i64, values.as_ptr().cast::<c_void>())
        })?;
        Some(self)
    }

    fn refer(self, name: A, to: &Description) -> Option<Description> {
        self.set(name, T::CUDNN_TYPE_BACKEND_DESCRIPTOR, &[to.0])
    }

    fn done(self) -> Option<Description> {
        // SAFETY: the description is alive.
        ok(unsafe { dnn::cudnnBackendFinalize(self.0) })?;
        Some(self)
    }
}

/// How attention of one shape is computed, and what the plan refers to.
pub(super) struct Plan {
    plan: Description,
    workspace: usize,
    _parts: Vec<Description>,
}

/// Numbers by which the plan knows its operands: queries, keys, values, result, scale.
const IDS: [i64; 5] = [1, 2, 3, 4, 5];
/// Configurations that are tried.
const TRIED: usize = 8;

impl Plan {
    /// None where the library has nothing for this shape.
    pub(super) fn new(handle: dnn::cudnnHandle_t, shape: Shape) -> Option<Plan> {
        // Releases differ in how many dimensions they want of a number.
        Plan::with_scale(handle, shape, &[1; 4]).or_else(|| Plan::with_scale(handle, shape, &[1]))
    }

    fn with_scale(handle: dnn::cudnnHandle_t, shape: Shape, one: &[i64]) -> Option<Plan> {
        let Shape { b, heads, n, m, d, strides, dtype } = shape;
        let kind = match dtype {
            DType::F16 => dnn::cudnnDataType_t::CUDNN_DATA_HALF,
            DType::BF16 => dnn::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
            DType::F32 => return None,
        };
        let tensor = |id: i64, rows: usize, stride: usize| {
            let sizes = [b, heads, rows, d].map(|s| s as i64);
            let steps = [rows * stride, d, stride, 1].map(|s| s as i64);
            Description::new(D::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?
                .set(A::CUDNN_ATTR_TENSOR_DATA_TYPE, T::CUDNN_TYPE_DATA_TYPE, &[kind])?
                .set(A::CUDNN_ATTR_TENSOR_DIMENSIONS, T::CUDNN_TYPE_INT64, &sizes)?
                .set(A::CUDNN_ATTR_TENSOR_STRIDES, T::CUDNN_TYPE_INT64, &steps)?
                .set(A::CUDNN_ATTR_TENSOR_UNIQUE_ID, T::CUDNN_TYPE_INT64, &[id])?
                .set(A::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, T::CUDNN_TYPE_INT64, &[16i64])?
                .done()
        };
        let q = tensor(IDS[0], n, strides[0])?;
        let k = tensor(IDS[1], m, strides[1])?;
        let v = tensor(IDS[2], m, strides[1])?;
        let o = tensor(IDS[3], n, strides[2])?;
        let scale = Description::new(D::CUDNN_BACKEND_TENSOR_DESCRIPTOR)?
            .set(A::CUDNN_ATTR_TENSOR_DATA_TYPE, T::CUDNN_TYPE_DATA_TYPE, &[dnn::cudnnDataType_t::CUDNN_DATA_FLOAT])?
            .set(A::CUDNN_ATTR_TENSOR_DIMENSIONS, T::CUDNN_TYPE_INT64, one)?
            .set(A::CUDNN_ATTR_TENSOR_STRIDES, T::CUDNN_TYPE_INT64, one)?
            .set(A::CUDNN_ATTR_TENSOR_UNIQUE_ID, T::CUDNN_TYPE_INT64, &[IDS[4]])?
            .set(A::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, T::CUDNN_TYPE_INT64, &[4i64])?
            .set(A::CUDNN_ATTR_TENSOR_IS_BY_VALUE, T::CUDNN_TYPE_BOOLEAN, &[true])?
            .done()?;
        let attention = Description::new(D::CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR)?
            .refer(A::CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, &q)?
            .refer(A::CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, &k)?
            .refer(A::CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, &v)?
            .refer(A::CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, &o)?
            .refer(A::CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, &scale)?
            .done()?;
        let graph = Description::new(D::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR)?
            .set(A::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, T::CUDNN_TYPE_HANDLE, &[handle])?
            .refer(A::CUDNN_ATTR_OPERATIONGRAPH_OPS, &attention)?
            .done()?;
        let mode = dnn::cudnnBackendHeurMode_t::CUDNN_HEUR_MODE_A;
        let advice = Description::new(D::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR)?
            .refer(A::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &graph)?
            .set(A::CUDNN_ATTR_ENGINEHEUR_MODE, T::CUDNN_TYPE_HEUR_MODE, &[mode])?
            .done()?;
        let mut found = (0..TRIED)
            .map(|_| Description::new(D::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR))
            .collect::<Option<Vec<Description>>>()?;
        let mut places: Vec<dnn::cudnnBackendDescriptor_t> = found.iter().map(|config| config.0).collect();
        let mut count = 0i64;
        // SAFETY: the list is as long as the call is told and holds descriptions of the type asked for.
        ok(unsafe {
            dnn::cudnnBackendGetAttribute(
                advice.0,
                A::CUDNN_ATTR_ENGINEHEUR_RESULTS,
                T::CUDNN_TYPE_BACKEND_DESCRIPTOR,
                TRIED as i64,
                &mut count,
                places.as_mut_ptr().cast(),
            )
        })?;
        found.truncate(count.clamp(0, TRIED as i64) as usize);
        // In the order in which the library expects them to be fast.
        let plan = found.iter().find_map(|config| {
            Description::new(D::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR)?
                .set(A::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, T::CUDNN_TYPE_HANDLE, &[handle])?
                .refer(A::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config)?
                .done()
        })?;
        let (mut workspace, mut count) = (0i64, 0i64);
        // SAFETY: the result goes to a place of its type.
        ok(unsafe {
            dnn::cudnnBackendGetAttribute(
                plan.0,
                A::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                T::CUDNN_TYPE_INT64,
                1,
                &mut count,
                (&raw mut workspace).cast(),
            )
        })?;
        let _parts = found.into_iter().chain([graph, attention, q, k, v, o, scale, advice]).collect();
        Some(Plan { plan, workspace: usize::try_from(workspace).ok()?, _parts })
    }

    /// Launches it on operands at these places: queries, keys, values, result.
    fn run(&self, handle: dnn::cudnnHandle_t, at: [u64; 4], scale: &f32, scratch: u64) -> Option<()> {
        let [q, k, v, o] = at.map(|at| at as *const c_void);
        let places = [q, k, v, o, std::ptr::from_ref(scale).cast::<c_void>()];
        let pack = Description::new(D::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR)?
            .set(A::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, T::CUDNN_TYPE_INT64, &IDS)?
            .set(A::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, T::CUDNN_TYPE_VOID_PTR, &places)?
            .set(A::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, T::CUDNN_TYPE_VOID_PTR, &[scratch as *const c_void])?
            .done()?;
        // SAFETY: the plan was made for operands of the shape for which the caller vouches.
        ok(unsafe { dnn::cudnnBackendExecute(handle, self.plan.0, pack.0) })
    }
}

impl Gpu {
    /// `softmax(q k^T scale) v` at these places: queries, keys, values, result; false where cuDNN does not take it, and
    /// nothing was done.
    ///
    /// # Safety
    /// The addresses are of this GPU, multiples of 16, and reach as far as the shape says.
    pub(super) unsafe fn attend(&'static self, shape: Shape, at: [u64; 4], scale: f32) -> Result<bool> {
        let Some(dnn) = &self.dnn else { return Ok(false) };
        self.bind()?;
        // Before the lock, which the thread that records needs too.
        let _turn = self.turn();
        let mut dnn = lock(dnn);
        let Dnn { handle, attentions, .. } = &mut *dnn;
        let plan = attentions.entry(shape).or_insert_with(|| Plan::new(*handle, shape));
        let Some(known) = plan else { return Ok(false) };
        // Back in the pool as soon as the attention was launched: what runs later runs after it.
        let shared = self.allocate(known.workspace)?;
        let scratch = self.counter(known.workspace).unwrap_or(shared.address());
        let Shape { b, heads, n, m, d, dtype, .. } = shape;
        let work = || Work {
            flop: 4 * (b * heads * n * m * d) as u64,
            ..Work::over(
                format!("attention {b}x{n} over {m}, {heads} heads of {d}, cuDNN"),
                2 * b * (n + m) * heads * d,
                dtype,
            )
        };
        if self.watch(work, || known.run(*handle, at, &scale, scratch)).is_some() {
            return Ok(true);
        }
        // A record may be what it refuses, which says nothing about later.
        if records() {
            return Err(self.failed("recording", "cuDNN refused an attention"));
        }
        // Refused after all; the own kernel takes it, now and later.
        *plan = None;
        Ok(false)
    }
}
