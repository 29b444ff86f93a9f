# One-line recipes; the logic is in xtask and .ci/run.

# Everything that must pass before a change lands; changes no file.
verify:
    bash .ci/run

# Format and apply what clippy can.
fix:
    cargo fmt --all && cargo clippy --workspace --all-targets --fix --allow-dirty

# Benchmarks beside the machine's ceilings.
bench *ARGS:
    cargo xtask bench {{ARGS}}

# Compile the CUDA build and run what needs no device (all of it where there is a GPU).
gpu:
    cargo xtask gpu-check
