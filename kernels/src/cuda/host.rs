//! The host as a device: the kernels' own sources, compiled by the C++ compiler of this machine when the first test asks.
//!
//! Every launch runs three times with its blocks and threads in other orders and must give the same bits: a missing barrier
//! or two writers of one value show. Each operand stands between guards, which must stay as they are and read as NaN.
#![expect(unsafe_code, reason = "calls into the library that the C++ compiler made of the kernels")]
use super::{Device, Grid, Kernel, Operand};
use std::convert::Infallible;
use std::ffi::{CString, c_char, c_int, c_void};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Values before and behind each operand.
const GUARD: usize = 64;
/// A NaN as number, far outside as index.
const POISON: u32 = 0x7fc0_beef;

type Launch = unsafe extern "C" fn(*const c_char, *const u32, u32, u32, *mut *mut c_void, u32) -> c_int;

/// The compiled kernels.
pub(crate) struct Host {
    launch: Launch,
}

/// The host's device. `None`, said loudly, on a machine without a C++ compiler.
pub(crate) fn host() -> Option<&'static Host> {
    static HOST: OnceLock<Option<Host>> = OnceLock::new();
    let host = HOST.get_or_init(|| {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        if Command::new(&compiler).arg("--version").output().is_err() {
            return None;
        }
        Some(Host { launch: load(&compile(&compiler)) })
    });
    if host.is_none() {
        // Not through print!, which the test harness keeps to itself.
        let note = "SKIPPED: the CUDA kernels were not checked on the host: no C++ compiler (set CXX, or install c++)\n";
        std::io::stderr().write_all(note.as_bytes()).unwrap();
    }
    host.as_ref()
}

/// Compiles the sources once for all test processes: the library's name holds their hash.
fn compile(compiler: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let flags =
        ["-std=c++17", "-O1", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-ffp-contract=off", "-Wall", "-Wno-unknown-pragmas"];
    let mut texts = vec![flags.join(" "), compiler.to_owned()];
    for folder in std::fs::read_dir(&source).unwrap().map(|f| f.unwrap().path()).chain([source.join("cuda/host")]) {
        if folder.is_dir() {
            let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().path()).collect();
            files.sort();
            let kernel = |path: &PathBuf| path.extension().is_some_and(|e| ["cu", "cuh", "cpp", "h"].iter().any(|k| e == *k));
            texts.extend(files.iter().filter(|p| kernel(p)).map(|p| std::fs::read_to_string(p).unwrap()));
        }
    }
    texts.sort();
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    let hash = texts.concat().bytes().fold(0xcbf2_9ce4_8422_2325, step);
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let library = folder.join(format!("cuda_on_host-{hash:016x}.so"));
    if !library.exists() {
        let own = folder.join(format!("cuda_on_host-{hash:016x}.{}", std::process::id()));
        let host = source.join("cuda/host");
        let out = Command::new(compiler)
            .args(flags)
            .args(["-include", "cuda.h", "-x", "c++", "fibers.cpp", "-o"])
            .arg(&own)
            .current_dir(host)
            .output()
            .unwrap();
        assert!(out.status.success(), "{compiler}:\n{}", String::from_utf8_lossy(&out.stderr));
        std::fs::rename(&own, &library).unwrap();
    }
    library
}

fn load(library: &Path) -> Launch {
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: our own library, whose initialisers do nothing; it stays loaded for ever.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
    assert!(!handle.is_null(), "{} does not load", library.display());
    // SAFETY: the handle is open and the name ends in zero.
    let symbol = unsafe { libc::dlsym(handle, c"cuda_host_launch".as_ptr()) };
    assert!(!symbol.is_null(), "no cuda_host_launch");
    // SAFETY: the function has this signature in fibers.cpp.
    unsafe { std::mem::transmute::<*mut c_void, Launch>(symbol) }
}

impl Device for Host {
    type View<'a, T: 'a> = &'a [T];
    type ViewMut<'a, T: 'a> = &'a mut [T];
    type Error = Infallible;

    fn len<T>(view: &&[T]) -> usize {
        view.len()
    }

    fn len_mut<T>(view: &&mut [T]) -> usize {
        view.len()
    }

    fn again<'b, T>(view: &'b &[T]) -> &'b [T] {
        view
    }

    fn again_mut<'b, T>(view: &'b mut &mut [T]) -> &'b mut [T] {
        view
    }

    fn read<'b, T>(view: &'b &mut [T]) -> &'b [T] {
        view
    }

    fn launch(&self, kernel: Kernel, grid: Grid, mut operands: Vec<Operand<'_, Self>>) -> Result<(), Infallible> {
        let mut first: Option<Vec<Vec<u32>>> = None;
        for order in 0..3 {
            let after = self.run(kernel, grid, &operands, order);
            let before = first.get_or_insert_with(|| after.clone());
            assert!(
                *before == after,
                "{}: bits depend on the order of threads: a barrier is missing or two threads write one value",
                kernel.name
            );
        }
        for (operand, after) in operands.iter_mut().zip(first.unwrap()) {
            match operand {
                Operand::Out(values) => values.iter_mut().zip(&after[GUARD..]).for_each(|(v, bits)| *v = f32::from_bits(*bits)),
                Operand::In(values) => assert!(bits(values) == inside(&after), "{}: an input was written", kernel.name),
                Operand::Indices(values) => assert!(*values == inside(&after), "{}: an index was written", kernel.name),
                Operand::Count(_) | Operand::Factor(_) => {}
            }
        }
        Ok(())
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn inside(guarded: &[u32]) -> &[u32] {
    &guarded[GUARD..guarded.len() - GUARD]
}

impl Host {
    /// Memory of each operand after one run.
    fn run(&self, kernel: Kernel, grid: Grid, operands: &[Operand<'_, Self>], order: u32) -> Vec<Vec<u32>> {
        let guard = [POISON; GUARD];
        let guarded = |values: Vec<u32>| [&guard[..], &values, &guard].concat();
        let mut memory: Vec<Vec<u32>> = operands
            .iter()
            .map(|operand| match operand {
                Operand::In(values) => guarded(bits(values)),
                Operand::Out(values) => guarded(bits(values)),
                Operand::Indices(values) => guarded(values.to_vec()),
                Operand::Count(count) => vec![*count],
                Operand::Factor(factor) => vec![factor.to_bits()],
            })
            .collect();
        // Scalars are passed by address, arrays by the address of their address.
        let mut addresses: Vec<*mut u32> = memory.iter_mut().map(|m| m.as_mut_ptr()).collect();
        let mut arguments: Vec<*mut c_void> = Vec::new();
        for (address, operand) in addresses.iter_mut().zip(operands) {
            if matches!(operand, Operand::Count(_) | Operand::Factor(_)) {
                arguments.push((*address).cast());
            } else {
                *address = address.wrapping_add(GUARD);
                arguments.push(std::ptr::from_mut(address).cast());
            }
        }
        let name = CString::new(kernel.name).unwrap();
        let Grid { blocks, threads, shared_bytes } = grid;
        // SAFETY: the arguments are those of the kernel's parameters (`Device::launch`), and all memory lives until the return.
        let outcome =
            unsafe { (self.launch)(name.as_ptr(), blocks.as_ptr(), threads, shared_bytes, arguments.as_mut_ptr(), order) };
        let meaning = ["", "unknown", "wrote past its shared memory", "left threads at a barrier", "has too large blocks"];
        assert!(outcome == 0, "kernel {} of {}: {}", kernel.name, kernel.folder, meaning[outcome as usize]);
        for (memory, operand) in memory.iter().zip(operands) {
            if !matches!(operand, Operand::Count(_) | Operand::Factor(_)) {
                let intact = memory[..GUARD] == guard && memory[memory.len() - GUARD..] == guard;
                assert!(intact, "{} wrote outside an operand", kernel.name);
            }
        }
        memory
    }
}

#[test]
fn every_fault_is_noticed() {
    let Some(host) = host() else { return };
    for (name, notice) in [
        ("fault_lost_barrier", "a barrier is missing"),
        ("fault_two_writers", "two threads write one value"),
        ("fault_outside", "wrote outside an operand"),
        ("fault_shared_overrun", "wrote past its shared memory"),
        ("fault_left_at_barrier", "left threads at a barrier"),
        ("fault_unknown", "unknown"),
    ] {
        let result = std::panic::catch_unwind(|| {
            let grid = Grid { blocks: [2, 1, 1], threads: 64, shared_bytes: 64 * 4 };
            host.launch(Kernel { folder: "host", name }, grid, vec![Operand::Out(&mut [0.0; 64][..])])
        });
        let panic = result.err().and_then(|panic| panic.downcast::<String>().ok());
        assert!(panic.as_ref().is_some_and(|text| text.contains(notice)), "{name}: {panic:?}");
    }
}
