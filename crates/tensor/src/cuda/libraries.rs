//! Finding NVIDIA's libraries at run time: by the loader's own search first, then where toolkits put
//! them and beside the program. A library that was loaded by its path once is found by its name from then on.

use cudarc::{cublaslt, cudnn, driver, nvrtc};
use std::path::PathBuf;
use std::sync::OnceLock;

/// Places beside the loader's own.
fn folders() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        ["/usr/local/cuda/lib64", "/opt/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]
            .into_iter()
            .map(PathBuf::from)
            .collect();
    if let Some(beside) = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_path_buf())) {
        found.push(beside.join("cuda"));
        found.push(beside);
    }
    found
}

/// Loads `lib{name}.so.*` by its path where the loader does not find it by name.
fn preload(name: &str, present: impl Fn() -> bool) -> bool {
    if present() {
        return true;
    }
    let prefix = format!("lib{name}.so.");
    for folder in folders() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let mut files: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(&prefix)))
            .collect();
        files.sort();
        for file in files.iter().rev() {
            // SAFETY: loading runs the library's own initialisers, as linking with it would.
            if let Ok(library) = unsafe { libloading::Library::new(file) } {
                std::mem::forget(library);
                if present() {
                    return true;
                }
            }
        }
    }
    false
}

/// Whether the driver is there; what to do where it is not.
pub(super) fn driver() -> Result<(), String> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    // SAFETY: only loads the library, if it is there.
    match FOUND.get_or_init(|| unsafe { driver::sys::is_culib_present() }) {
        true => Ok(()),
        false => {
            Err("no NVIDIA driver (libcuda) was found on this machine; install NVIDIA's driver, or choose the CPU"
                .into())
        }
    }
}

/// Whether NVRTC, which compiles the kernels, is there.
pub(super) fn compiler() -> Result<(), String> {
    static FOUND: OnceLock<bool> = OnceLock::new();
    // SAFETY: as above.
    match FOUND.get_or_init(|| preload("nvrtc", || unsafe { nvrtc::sys::is_culib_present() })) {
        true => Ok(()),
        false => {
            Err("NVRTC (libnvrtc), which compiles its kernels, was not found; install the CUDA toolkit or the Python \
                      package nvidia-cuda-nvrtc, and name the library's folder in LD_LIBRARY_PATH"
                .into())
        }
    }
}

/// Whether cuBLASLt is there.
pub(super) fn blas() -> bool {
    // SAFETY: as above.
    preload("cublasLt", || unsafe { cublaslt::sys::is_culib_present() })
}

/// Whether cuDNN is there.
pub(super) fn dnn() -> bool {
    // SAFETY: as above.
    preload("cudnn", || unsafe { cudnn::sys::is_culib_present() })
}
