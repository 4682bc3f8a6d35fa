//! Products of matrices by cuBLASLt, with the algorithm that measured best for each.

use super::choice::Choices;
use super::fork::aside;
use super::gpu::{Gpu, lock, records};
use super::libraries;
use super::profile::Work;
use crate::{DType, Result};
use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys;
use std::collections::HashMap;
use std::ffi::c_void;

/// A matrix of rows in memory: where it begins and how far its rows are apart.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) at: u64,
    pub(super) stride: usize,
}

/// `out [rows, columns] = alpha x [rows, depth] w + bias + residual`, all addresses on one GPU. Several `planes` are such
/// products of operands that lie one behind the other.
pub(super) struct Product {
    pub(super) planes: usize,
    pub(super) rows: usize,
    pub(super) depth: usize,
    pub(super) columns: usize,
    pub(super) dtype: DType,
    pub(super) x: Matrix,
    pub(super) w: Matrix,
    /// Whether `w` lies as `[columns, depth]`, as weights do, rather than `[depth, columns]`.
    pub(super) transposed: bool,
    pub(super) out: Matrix,
    /// The result's type: `dtype`, or f32 for sums that must not be rounded.
    pub(super) out_dtype: DType,
    pub(super) alpha: f32,
    /// Of `columns` numbers in `dtype`.
    pub(super) bias: Option<u64>,
    /// Lies as `out` does.
    pub(super) residual: Option<u64>,
    /// Where `x` and `w` are 8-bit numbers: the scales of their rows, f32.
    pub(super) scales: Option<[u64; 2]>,
}

impl Product {
    fn work(&self) -> Work {
        let Product { planes, rows, depth, columns, .. } = *self;
        let times = if planes > 1 { format!("{planes} times ") } else { String::new() };
        let said = |is: bool, text| if is { text } else { "" };
        let more = [
            said(self.scales.is_some(), ", 8 bits"),
            said(self.bias.is_some(), " + bias"),
            said(self.residual.is_some(), " + residual"),
        ]
        .concat();
        let outputs = rows * columns * (1 + usize::from(self.residual.is_some()));
        Work {
            name: format!("{times}linear {rows}x{depth} -> {columns}{more}, {}", self.dtype),
            flop: 2 * (planes * rows * depth * columns) as u64,
            bytes: (planes
                * (rows * depth + depth * columns)
                * if self.scales.is_some() { 1 } else { self.dtype.bytes() }
                + outputs * self.out_dtype.bytes()) as u64,
        }
    }

    fn key(&self) -> Key {
        let all = self.x.at | self.w.at | self.out.at | self.bias.unwrap_or(0) | self.residual.unwrap_or(0);
        Key {
            planes: self.planes,
            sizes: [self.rows, self.depth, self.columns],
            strides: [self.x.stride, self.w.stride, self.out.stride],
            transposed: self.transposed,
            types: [self.dtype, self.out_dtype],
            bias: self.bias.is_some(),
            residual: self.residual.is_some(),
            narrow: self.scales.is_some(),
            alignment: 1 << all.trailing_zeros().min(8),
        }
    }
}

/// What tells one product from another.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    planes: usize,
    /// Rows, depth, columns.
    sizes: [usize; 3],
    /// Of input, weight, output.
    strides: [usize; 3],
    transposed: bool,
    types: [DType; 2],
    bias: bool,
    residual: bool,
    /// Whether input and weight are 8-bit numbers.
    narrow: bool,
    /// What all addresses are multiples of.
    alignment: u32,
}

impl Key {
    /// As it is remembered on disk.
    fn name(&self) -> String {
        let Key { planes, sizes, strides, transposed, types, bias, residual, narrow, alignment } = self;
        let times = if *planes > 1 { format!("{planes} times ") } else { String::new() };
        format!("{times}{sizes:?} {strides:?} {transposed} {types:?} {bias} {residual} {narrow} {alignment}")
    }
}

/// Descriptions and the algorithm of one product.
struct Plan {
    description: lt::cublasLtMatmulDesc_t,
    weight: lt::cublasLtMatrixLayout_t,
    input: lt::cublasLtMatrixLayout_t,
    output: lt::cublasLtMatrixLayout_t,
    algorithm: Algorithm,
    /// Others that the library names, in the order in which it expects them to be fast, until one was chosen.
    candidates: Vec<Algorithm>,
}

/// One way of computing a product, and the bytes of scratch memory that it needs.
#[derive(Clone, Copy)]
struct Algorithm {
    how: lt::cublasLtMatmulAlgo_t,
    scratch: usize,
}

/// cuBLASLt on one GPU.
pub(super) struct Blas {
    handle: lt::cublasLtHandle_t,
    /// Scratch memory of all products of a stream, which run one after the other; the second is for work beside other
    /// work.
    workspaces: [u64; 2],
    /// None: cuBLASLt does not take this product.
    plans: HashMap<Key, Option<Plan>>,
    choices: Option<Choices>,
}

// SAFETY: the handles may be used from any thread, one at a time, which the lock around this sees to.
unsafe impl Send for Blas {}

const WORKSPACE: usize = 32 << 20;
/// Algorithms that are asked for.
const CANDIDATES: usize = 24;

fn ok(status: lt::cublasStatus_t) -> Option<()> {
    (status == lt::cublasStatus_t::CUBLAS_STATUS_SUCCESS).then_some(())
}

/// A number as the library reads attributes: by address and size.
///
/// # Safety
/// `set` takes attributes of this type.
unsafe fn attribute<T>(value: T, set: impl FnOnce(*const c_void, usize) -> lt::cublasStatus_t) -> Option<()> {
    ok(set((&raw const value).cast(), size_of::<T>()))
}

impl Blas {
    /// None where the library is not found or does not start.
    pub(super) fn open() -> Option<Blas> {
        if !libraries::blas() {
            return None;
        }
        let (mut handle, mut workspaces) = (std::ptr::null_mut(), [0; 2]);
        // SAFETY: a context is current; results go to places of their types.
        unsafe {
            ok(lt::cublasLtCreate(&mut handle))?;
            for workspace in &mut workspaces {
                if sys::cuMemAlloc_v2(workspace, WORKSPACE) != sys::CUresult::CUDA_SUCCESS {
                    return None;
                }
            }
        }
        Some(Blas { handle, workspaces, plans: HashMap::new(), choices: None })
    }

    /// Describes a product and asks for its best algorithm.
    fn plan(&self, key: Key) -> Option<Plan> {
        use lt::cublasLtMatmulDescAttributes_t as D;
        use lt::cublasLtMatmulPreferenceAttributes_t as P;
        let kind = |dtype| match dtype {
            DType::F32 => lt::cudaDataType::CUDA_R_32F,
            DType::F16 => lt::cudaDataType::CUDA_R_16F,
            DType::BF16 => lt::cudaDataType::CUDA_R_16BF,
        };
        let [rows, depth, columns] = key.sizes.map(|n| n as u64);
        let [across, down] = if key.transposed { [depth, columns] } else { [columns, depth] };
        // SAFETY: every attribute is of the type that its name stands for in the library's documentation; results go to
        // places of their types. What was created stays for the life of the process or is leaked on failure, once.
        unsafe {
            let (mut description, mut preference) = (std::ptr::null_mut(), std::ptr::null_mut());
            // The library's f32 product is exact f32; TF32 would have to be asked for.
            let compute = lt::cublasComputeType_t::CUBLAS_COMPUTE_32F;
            ok(lt::cublasLtMatmulDescCreate(&mut description, compute, lt::cudaDataType::CUDA_R_32F))?;
            let set = |what: D| {
                move |value: *const c_void, size: usize| {
                    lt::cublasLtMatmulDescSetAttribute(description, what, value, size)
                }
            };
            // It counts by columns: out^T [n, rows] = w^T [n, k] x^T [k, rows].
            attribute(i32::from(key.transposed), set(D::CUBLASLT_MATMUL_DESC_TRANSA))?;
            if key.bias {
                attribute(
                    lt::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS as u32,
                    set(D::CUBLASLT_MATMUL_DESC_EPILOGUE),
                )?;
            }
            let layout = |kind, height: u64, width: u64, stride: usize| {
                use lt::cublasLtMatrixLayoutAttribute_t as L;
                let mut layout = std::ptr::null_mut();
                ok(lt::cublasLtMatrixLayoutCreate(&mut layout, kind, height, width, stride as i64))?;
                let set = |what: L| {
                    move |value: *const c_void, size: usize| {
                        lt::cublasLtMatrixLayoutSetAttribute(layout, what, value, size)
                    }
                };
                attribute(key.planes as i32, set(L::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT))?;
                attribute(width as i64 * stride as i64, set(L::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET))?;
                Some(layout)
            };
            let operand = if key.narrow { lt::cudaDataType::CUDA_R_8F_E4M3 } else { kind(key.types[0]) };
            if key.narrow {
                let rows = lt::cublasLtMatmulMatrixScale_t::CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F as i32;
                attribute(rows, set(D::CUBLASLT_MATMUL_DESC_A_SCALE_MODE))?;
                attribute(rows, set(D::CUBLASLT_MATMUL_DESC_B_SCALE_MODE))?;
                // Only asked whether they are there.
                attribute(WORKSPACE as u64, set(D::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER))?;
                attribute(WORKSPACE as u64, set(D::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER))?;
                attribute(1i8, set(D::CUBLASLT_MATMUL_DESC_FAST_ACCUM))?;
                attribute(kind(key.types[0]) as i32, set(D::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE))?;
            }
            let weight = layout(operand, across, down, key.strides[1])?;
            let input = layout(operand, depth, rows, key.strides[0])?;
            let output = layout(kind(key.types[1]), columns, rows, key.strides[2])?;
            ok(lt::cublasLtMatmulPreferenceCreate(&mut preference))?;
            let prefer = |what: P| {
                move |value: *const c_void, size: usize| {
                    lt::cublasLtMatmulPreferenceSetAttribute(preference, what, value, size)
                }
            };
            attribute(WORKSPACE, prefer(P::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES))?;
            for side in [
                P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                P::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
            ] {
                attribute(key.alignment, prefer(side))?;
            }
            // Parts of a sum are never rounded to 16 bits.
            let exact = lt::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
            attribute(exact, prefer(P::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK))?;
            let mut found: [lt::cublasLtMatmulHeuristicResult_t; CANDIDATES] = std::mem::zeroed();
            let mut count = 0;
            let asked = lt::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description,
                weight,
                input,
                output,
                output,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut count,
            );
            lt::cublasLtMatmulPreferenceDestroy(preference);
            ok(asked)?;
            let found = found.iter().take(count.max(0) as usize);
            let candidates: Vec<_> = found
                .filter(|f| ok(f.state).is_some())
                .map(|f| Algorithm { how: f.algo, scratch: f.workspaceSize })
                .collect();
            let algorithm = *candidates.first()?;
            Some(Plan { description, weight, input, output, algorithm, candidates })
        }
    }
}

impl Gpu {
    /// Computes a product; false where cuBLASLt is not there or does not take it, and nothing was done.
    ///
    /// # Safety
    /// The addresses are of this GPU and reach as far as sizes and strides say; bias and residual are as described.
    pub(super) unsafe fn product(&self, product: &Product) -> Result<bool> {
        let Some(blas) = &self.blas else { return Ok(false) };
        self.bind()?;
        let key = product.key();
        // Before the lock, which the thread that records needs too.
        let _turn = self.turn();
        let mut blas = lock(blas);
        if !blas.plans.contains_key(&key) {
            let plan = blas.plan(key);
            blas.plans.insert(key, plan);
        }
        let Blas { handle, workspaces, plans, choices } = &mut *blas;
        let Some(Some(plan)) = plans.get_mut(&key) else { return Ok(false) };
        use lt::cublasLtMatmulDescAttributes_t as D;
        let [x_scales, w_scales] = product.scales.map_or([None; 2], |scales| scales.map(Some));
        let pointers = [
            (D::CUBLASLT_MATMUL_DESC_BIAS_POINTER, product.bias),
            (D::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, w_scales),
            (D::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, x_scales),
        ];
        let told = pointers.into_iter().filter_map(|(what, at)| Some((what, at?))).all(|(what, at)| {
            // SAFETY: the attribute is an address.
            unsafe {
                attribute(at, |value, size| lt::cublasLtMatmulDescSetAttribute(plan.description, what, value, size))
                    .is_some()
            }
        });
        let shared = workspaces[usize::from(aside())];
        // SAFETY: the layouts were made from the sizes for which the caller vouches; the workspace is as large as the
        // preference said; products of a stream run one after the other.
        let launch = |plan: &Plan, algorithm: &Algorithm| unsafe {
            let scratch = self.counter(algorithm.scratch).unwrap_or(shared);
            told && self.multiply(*handle, plan, algorithm, product, scratch)
        };
        if plan.candidates.len() > 1 && !records() {
            let choices = choices.get_or_insert_with(|| Choices::open(self, &format!("cuBLASLt {}", version())));
            let chosen = plan.choose(choices, &key.name(), *handle, |algorithms| {
                self.fastest(algorithms.len(), |candidate| launch(plan, &algorithms[candidate]))
            })?;
            (plan.algorithm, plan.candidates) = (chosen, Vec::new());
        }
        let done = self.watch(|| product.work(), || launch(plan, &plan.algorithm));
        if !done {
            // A record may be what it refuses, which says nothing about later.
            if records() {
                return Err(self.failed("recording", "cuBLASLt refused a product"));
            }
            // Refused after all; the own kernel takes it, now and later.
            plans.insert(key, None);
        }
        Ok(done)
    }

    /// Launches a product; false where the library refuses it.
    ///
    /// # Safety
    /// As [`Gpu::product`]; `scratch` has the size that the algorithm asks for.
    unsafe fn multiply(
        &self,
        handle: lt::cublasLtHandle_t,
        plan: &Plan,
        algorithm: &Algorithm,
        product: &Product,
        scratch: u64,
    ) -> bool {
        let beta = if product.residual.is_some() { 1f32 } else { 0f32 };
        // SAFETY: the caller vouches for the addresses.
        let status = unsafe {
            lt::cublasLtMatmul(
                handle,
                plan.description,
                (&raw const product.alpha).cast(),
                product.w.at as *const c_void,
                plan.weight,
                product.x.at as *const c_void,
                plan.input,
                (&raw const beta).cast(),
                product.residual.unwrap_or(product.out.at) as *const c_void,
                plan.output,
                product.out.at as *mut c_void,
                plan.output,
                &algorithm.how,
                scratch as *mut c_void,
                algorithm.scratch,
                self.stream().cast(),
            )
        };
        ok(status).is_some()
    }
}

/// The library's release.
fn version() -> usize {
    // SAFETY: the library is there, as its handle is.
    unsafe { lt::cublasLtGetVersion() }
}

impl Plan {
    /// The algorithm that is remembered for this product, else the fastest, else the library's first.
    fn choose(
        &self,
        choices: &mut Choices,
        name: &str,
        handle: lt::cublasLtHandle_t,
        fastest: impl FnOnce(&[Algorithm]) -> Result<Option<usize>>,
    ) -> Result<Algorithm> {
        if let Some(&known) = choices.get(name).and_then(|numbers| numbers.first_chunk()) {
            let known = lt::cublasLtMatmulAlgo_t { data: known };
            // SAFETY: descriptions and handle are alive; the result goes to a place of its type.
            let scratch = unsafe {
                let mut said: lt::cublasLtMatmulHeuristicResult_t = std::mem::zeroed();
                let (weight, input, output) = (self.weight, self.input, self.output);
                let asked = lt::cublasLtMatmulAlgoCheck(
                    handle,
                    self.description,
                    weight,
                    input,
                    output,
                    output,
                    &known,
                    &mut said,
                );
                let fits = ok(asked).and_then(|()| ok(said.state)).is_some() && said.workspaceSize <= WORKSPACE;
                fits.then_some(said.workspaceSize)
            };
            if let Some(scratch) = scratch {
                return Ok(Algorithm { how: known, scratch });
            }
        }
        if !choices.are_kept() {
            return Ok(self.algorithm);
        }
        let chosen = fastest(&self.candidates)?.map_or(self.algorithm, |candidate| self.candidates[candidate]);
        choices.put(name.to_string(), &chosen.how.data);
        Ok(chosen)
    }
}
