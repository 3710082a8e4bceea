//! The toolbox executable; see the library of this package.

fn main() -> std::process::ExitCode {
    rkube_toolbox_elf::main(std::env::args_os())
}
