//! Own kernels: compiled by NVRTC for the card found at their first use, and kept on disk by content.

use super::gpu::{Gpu, lock};
use crate::{DType, Result};
use cudarc::driver::sys;
use cudarc::nvrtc::sys as nvrtc;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Family {
    Attention,
    /// As `AttentionTiles`.
    AttentionFew,
    /// For Hopper only, heads of 64.
    AttentionLong,
    /// As `AttentionLong`.
    AttentionText,
    /// Compiled for each width of a head.
    AttentionTiles,
    Conv,
    Elementwise,
    Narrow,
    Norm,
    Shape,
    /// Compiled for each width of a tile, for Hopper only.
    Tiles,
    Winograd,
}

impl Family {
    fn name(self) -> &'static str {
        match self {
            Family::Attention => "attention.cu",
            Family::AttentionFew => "attention_few.cu",
            Family::AttentionLong => "attention_long.cu",
            Family::AttentionText => "attention_text.cu",
            Family::AttentionTiles => "attention_tiles.cu",
            Family::Conv => "conv.cu",
            Family::Elementwise => "elementwise.cu",
            Family::Narrow => "narrow.cu",
            Family::Norm => "norm.cu",
            Family::Shape => "shape.cu",
            Family::Tiles => "tiles.cu",
            Family::Winograd => "winograd.cu",
        }
    }

    /// The whole source: what all files share, then the file.
    fn source(self, head: usize) -> String {
        let own = match self {
            Family::Attention => include_str!("../kernels/attention.cu"),
            Family::AttentionFew => include_str!("../kernels/attention_few.cu"),
            Family::AttentionLong => include_str!("../kernels/attention_long.cu"),
            Family::AttentionText => include_str!("../kernels/attention_text.cu"),
            Family::AttentionTiles => include_str!("../kernels/attention_tiles.cu"),
            Family::Conv => include_str!("../kernels/conv.cu"),
            Family::Elementwise => include_str!("../kernels/elementwise.cu"),
            Family::Narrow => include_str!("../kernels/narrow.cu"),
            Family::Norm => include_str!("../kernels/norm.cu"),
            Family::Shape => include_str!("../kernels/shape.cu"),
            Family::Tiles => include_str!("../kernels/tiles.cu"),
            Family::Winograd => include_str!("../kernels/winograd.cu"),
        };
        let shared = match self {
            Family::Attention => include_str!("../kernels/attention.cuh").to_string(),
            Family::AttentionFew | Family::AttentionTiles => {
                concat!(include_str!("../kernels/attention.cuh"), include_str!("../kernels/fragments.cuh")).to_string()
            }
            Family::AttentionLong => format!("{HOPPER_BASICS}{}", super::long::products()),
            Family::AttentionText => {
                format!("{}{HOPPER_BASICS}{}", include_str!("../kernels/attention.cuh"), super::text::products())
            }
            Family::Tiles => format!("{HOPPER_BASICS}{}", super::tiles::multiply(head)),
            _ => String::new(),
        };
        let head = match self {
            Family::Tiles => format!("#define WIDE {head}\n"),
            _ if head != 0 => format!("#define HEAD {head}\n"),
            _ => String::new(),
        };
        format!("{head}{}{shared}\n#line 1 \"{}\"\n{own}", include_str!("../kernels/common.cuh"), self.name())
    }
}

/// What the files for Hopper share.
const HOPPER_BASICS: &str = concat!(include_str!("../kernels/fragments.cuh"), include_str!("../kernels/hopper.cuh"));

/// A compiled file for one GPU; `head` is the width of an attention head or a tile where the file depends on it, else 0.
type Unit = (Family, usize);

/// The architecture of a Hopper.
pub(super) const HOPPERS: i32 = 90;

/// Bytes of shared memory that every kernel may take beside a little of its own.
const UNASKED: usize = 46 << 10;

/// What every picture needs: compiled together.
const USUAL: [Unit; 4] = [(Family::AttentionFew, 64), (Family::Norm, 0), (Family::Elementwise, 0), (Family::Shape, 0)];

/// And on a Hopper.
const HOPPER: [Unit; 5] = [
    (Family::Tiles, super::tiles::PLAIN),
    (Family::Tiles, super::tiles::GATED),
    (Family::AttentionLong, super::long::HEAD),
    (Family::AttentionText, super::long::HEAD),
    (Family::Winograd, 0),
];

/// The kernels of one GPU that were asked for so far.
#[derive(Default)]
pub(super) struct Kernels(Mutex<Loaded>);

#[derive(Default)]
struct Loaded {
    units: HashMap<Unit, sys::CUmodule>,
    /// With the bytes of shared memory that each may take.
    functions: HashMap<(Unit, &'static str, Option<DType>), (sys::CUfunction, usize)>,
}

// SAFETY: modules and functions are handles that any thread may use.
unsafe impl Send for Loaded {}

/// Where compiled kernels are kept.
static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Names the folder in which compiled kernels are kept from one process to the next; without it they are compiled in
/// each. Only the first call of a process has an effect.
pub fn set_kernel_cache(folder: &Path) {
    // A second call meets the first one's folder.
    let _ = FOLDER.set(folder.to_path_buf());
}

/// The folder of [`set_kernel_cache`].
pub(super) fn folder() -> Option<&'static Path> {
    FOLDER.get().map(PathBuf::as_path)
}

impl Gpu {
    /// The kernel `{name}_{dtype}` of a family, or `name` alone where it has no element type.
    pub(super) fn kernel(
        &self,
        family: Family,
        name: &'static str,
        dtype: impl Into<Option<DType>>,
    ) -> Result<sys::CUfunction> {
        self.kernel_for(family, 0, name, dtype.into(), 0)
    }

    /// As [`Gpu::kernel`], of a file that is compiled for each `head`; the kernel may take `shared` bytes of shared memory.
    pub(super) fn kernel_for(
        &self,
        family: Family,
        head: usize,
        name: &'static str,
        dtype: Option<DType>,
        shared: usize,
    ) -> Result<sys::CUfunction> {
        let mut loaded = lock(&self.kernels.0);
        let unit = (family, head);
        if let Some(&(function, allowed)) = loaded.functions.get(&(unit, name, dtype))
            && shared <= allowed
        {
            return Ok(function);
        }
        self.bind()?;
        let module = match loaded.units.get(&unit) {
            Some(&module) => module,
            None => {
                let module = self.load(&mut loaded, unit)?;
                loaded.units.insert(unit, module);
                module
            }
        };
        let full = dtype.map_or(name.to_string(), |dtype| format!("{name}_{dtype}"));
        let full = CString::new(full).map_err(|_| self.failed("naming a kernel", name))?;
        let mut function = std::ptr::null_mut();
        // SAFETY: the module is loaded for good, the name ends with zero, the result goes to a place of its type.
        self.check(name, unsafe { sys::cuModuleGetFunction(&mut function, module, full.as_ptr()) })?;
        if shared > UNASKED {
            let which = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was just found.
            self.check(name, unsafe { sys::cuFuncSetAttribute(function, which, shared as i32) })?;
        }
        loaded.functions.insert((unit, name, dtype), (function, shared.max(UNASKED)));
        Ok(function)
    }

    /// Loads a unit from the folder of compiled kernels, or compiles it and puts it there; with it what else a picture
    /// needs and is not there yet, each on a thread of its own.
    fn load(&self, loaded: &mut Loaded, unit: Unit) -> Result<sys::CUmodule> {
        if let Some(module) = self.kept(unit) {
            return Ok(module);
        }
        let absent = |other: &Unit| *other != unit && !loaded.units.contains_key(other);
        let usual = USUAL.into_iter().chain(HOPPER.into_iter().filter(|_| self.arch == HOPPERS));
        let others = usual.filter(absent).filter(|other| !place(*other, self.arch).is_some_and(|p| p.exists()));
        let units: Vec<Unit> = std::iter::once(unit).chain(others).collect();
        let images: Vec<_> = std::thread::scope(|scope| {
            let compiling = |&(family, head): &Unit| {
                let options = options(self.arch, family);
                scope.spawn(move || compile(&family.source(head), family.name(), &options))
            };
            let threads: Vec<_> = units.iter().map(compiling).collect();
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("it broke off".into()))).collect()
        });
        let mut first = None;
        for (made, image) in units.into_iter().zip(images) {
            let failed = |said: String| self.failed(&format!("compiling {}", made.0.name()), said);
            let module = image.map_err(failed).and_then(|image| {
                if let Some(path) = place(made, self.arch) {
                    keep(&path, &image);
                }
                self.module(&image)
            });
            match module {
                Ok(module) if made != unit => drop(loaded.units.insert(made, module)),
                // What nobody asked for is compiled, and complained of, again when somebody does.
                Err(_) if made != unit => {}
                module => first = Some(module),
            }
        }
        first.unwrap_or_else(|| Err(self.failed("compiling", unit.0.name())))
    }

    /// The unit from the folder of compiled kernels.
    fn kept(&self, unit: Unit) -> Option<sys::CUmodule> {
        let image = opened(std::fs::read(place(unit, self.arch)?).ok()?)?;
        self.module(&image).ok()
    }

    fn module(&self, image: &[u8]) -> Result<sys::CUmodule> {
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is whole, as NVRTC gave it: kept ones are checked; text images end with zero.
        self.check("loading kernels", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
        Ok(module)
    }
}

/// Where a compiled unit is kept.
fn place((family, head): Unit, arch: i32) -> Option<PathBuf> {
    Some(folder()?.join(format!("{}.kernels", key(&family.source(head), &options(arch, family)))))
}

/// Options for a card: machine code where this NVRTC knows it, else an older form that the driver compiles.
fn options(arch: i32, family: Family) -> Vec<String> {
    let mut known = 0;
    // SAFETY: NVRTC is there, as opening the GPU checked; the list is as long as it says.
    let list = unsafe {
        nvrtc::nvrtcGetNumSupportedArchs(&mut known);
        let mut list = vec![0; known.max(0) as usize];
        if !list.is_empty() {
            nvrtc::nvrtcGetSupportedArchs(list.as_mut_ptr());
        }
        list
    };
    // Instructions that no later card has are asked for by name.
    let own = if HOPPER.iter().any(|(own, _)| *own == family) { "a" } else { "" };
    let target = match list.iter().filter(|&&a| a <= arch).max() {
        Some(&exact) if exact == arch => format!("sm_{arch}{own}"),
        Some(older) => format!("compute_{older}"),
        None => format!("sm_{arch}"),
    };
    vec![format!("--gpu-architecture={target}"), "--std=c++17".into(), "--fmad=true".into()]
}

/// The name of a compiled file: a digest of everything that it depends on.
fn key(source: &str, options: &[String]) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: as above; both places are of the right type.
    unsafe { nvrtc::nvrtcVersion(&mut major, &mut minor) };
    let mut digest = Sha256::new();
    digest.update(format!("{major}.{minor} {options:?}\n{source}"));
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes of the digest before a kept image.
const SEAL: usize = 32;

/// An image with its digest before it: the driver is told no length, so a file cut short must never reach it.
fn sealed(image: &[u8]) -> Vec<u8> {
    [Sha256::digest(image).as_slice(), image].concat()
}

/// The image of a kept file, if it is whole.
fn opened(mut file: Vec<u8>) -> Option<Vec<u8>> {
    let (digest, image) = file.split_at_checked(SEAL)?;
    (!image.is_empty() && Sha256::digest(image).as_slice() == digest).then(|| file.split_off(SEAL))
}

/// Writes a compiled file beside its place and renames it; a folder that cannot be written costs only time.
fn keep(path: &Path, image: &[u8]) {
    let beside = path.with_extension(format!("{}.new", std::process::id()));
    let written = path
        .parent()
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::write(&beside, sealed(image)))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
}

/// Compiles a source to an image for the driver: machine code for `sm_*`, text for `compute_*`.
pub(super) fn compile(source: &str, name: &str, options: &[String]) -> std::result::Result<Vec<u8>, String> {
    let text = |s: &str| CString::new(s).map_err(|_| "a text holds a zero byte".to_string());
    let (source, name) = (text(source)?, text(name)?);
    let options: Vec<CString> = options.iter().map(|o| text(o)).collect::<std::result::Result<_, _>>()?;
    let pointers: Vec<_> = options.iter().map(|o| o.as_ptr()).collect();
    let machine_code = options.iter().any(|o| o.to_string_lossy().contains("=sm_"));
    let mut program = std::ptr::null_mut();
    let check = |result: nvrtc::nvrtcResult| match result {
        nvrtc::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        other => Err(format!("NVRTC says {other:?}")),
    };
    // SAFETY: all texts end with zero and live to the end of this function; buffers are as long as NVRTC asked for.
    unsafe {
        let (none, no_names) = (std::ptr::null(), std::ptr::null());
        check(nvrtc::nvrtcCreateProgram(&mut program, source.as_ptr(), name.as_ptr(), 0, none, no_names))?;
        let compiled = nvrtc::nvrtcCompileProgram(program, pointers.len() as i32, pointers.as_ptr());
        let image = if compiled == nvrtc::nvrtcResult::NVRTC_SUCCESS {
            let mut size = 0;
            let read = |size: &mut usize| match machine_code {
                true => check(nvrtc::nvrtcGetCUBINSize(program, size)),
                false => check(nvrtc::nvrtcGetPTXSize(program, size)),
            };
            read(&mut size).and_then(|()| {
                let mut image = vec![0u8; size];
                check(match machine_code {
                    true => nvrtc::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()),
                    false => nvrtc::nvrtcGetPTX(program, image.as_mut_ptr().cast()),
                })
                .map(|()| image)
            })
        } else {
            let mut size = 0;
            let mut log = Vec::new();
            if nvrtc::nvrtcGetProgramLogSize(program, &mut size) == nvrtc::nvrtcResult::NVRTC_SUCCESS {
                log.resize(size, 0u8);
                nvrtc::nvrtcGetProgramLog(program, log.as_mut_ptr().cast());
            }
            Err(format!("{compiled:?}: {}", String::from_utf8_lossy(&log).trim_end_matches('\0')))
        };
        nvrtc::nvrtcDestroyProgram(&mut program);
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_kernels_are_whole_or_none() {
        let file = sealed(b"machine code");
        assert_eq!(opened(file.clone()).as_deref(), Some(&b"machine code"[..]));
        assert!((0..file.len()).all(|end| opened(file[..end].to_vec()).is_none()));
        assert!(opened(sealed(b"")).is_none() && opened([file, vec![0]].concat()).is_none());
    }

    /// Every kernel compiles for the oldest card with bf16 and for Hopper, where NVRTC is there; no GPU is needed.
    #[test]
    fn every_kernel_compiles() {
        if crate::cuda::libraries::compiler().is_err() {
            println!("NVRTC is not here; nothing was compiled");
            return;
        }
        let plain =
            [Family::Conv, Family::Elementwise, Family::Narrow, Family::Norm, Family::Shape].map(|family| (family, 0));
        let heads = crate::cuda::attention::HEADS.map(|head| (Family::AttentionTiles, head));
        let few = [16, crate::cuda::attention::NARROW].map(|head| (Family::AttentionFew, head));
        for (family, head) in plain.into_iter().chain(heads).chain(few).chain([(Family::Attention, 0)]) {
            for arch in ["sm_75", "sm_90", "compute_80"] {
                let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_string()];
                let image = compile(&family.source(head), family.name(), &options);
                assert!(image.is_ok(), "{family:?} {head} for {arch}: {}", image.unwrap_err());
            }
        }
        for (family, head) in HOPPER {
            let options = ["--gpu-architecture=sm_90a".to_string(), "--std=c++17".to_string()];
            let image = compile(&family.source(head), family.name(), &options);
            assert!(image.is_ok(), "{family:?} {head}: {}", image.unwrap_err());
        }
    }
}
