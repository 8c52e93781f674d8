fn main() -> std::process::ExitCode {
    superbatch::cli::main()
}
