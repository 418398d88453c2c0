# `just` lists these; `just check` is what must pass before a change is merged.

_default:
    @just --list

# Format, lint, documentation, tests.
check: format-check lint doc test

# Rewrite the sources in the project's format.
format:
    cargo fmt --all

format-check:
    cargo fmt --all --check

lint:
    cargo clippy --workspace --all-targets --locked -- -D warnings

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

test:
    cargo test --release --workspace --locked

# The tests, none of them skipped for want of reference files.
test-all:
    MICROSCALE_REQUIRE_SHARED=1 cargo test --release --workspace --locked

# The accuracy table of the demo world, or whatever the arguments ask for.
table *arguments:
    cargo run --release --locked -- table {{arguments}}

# Licences, advisories, sources (needs cargo-deny).
deny:
    cargo deny check
