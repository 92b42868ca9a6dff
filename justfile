# What CI runs, piece by piece; `just --list` shows it all.

# Show the whole system at work, on real components.
demo *arguments:
    cargo demo {{ arguments }}

# Every test, those on real components included.
test:
    cargo test --workspace

# The tests that touch Vault, on HashiCorp Vault instead of OpenBao.
test-vault:
    TESTBED_VAULT=vault cargo test --test system

# The tests on the oldest Kubernetes version that is supported.
test-oldest:
    TESTBED_KUBERNETES=1.33 cargo test --test system

# Formatting, lints, documentation, dependencies.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    cargo clippy --workspace --test attack --test node -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
    cargo deny check

# Write crds/ from the Rust types.
crds:
    cargo run --quiet -- crds > crds/vaultproject.io.yaml

# All that CI does.
ci:
    .ci/run

# A million schedules of each kind (about a quarter of an hour); SIMULATION_SEED repeats a run.
simulate schedules="1000000":
    SIMULATION_SCHEDULES={{ schedules }} cargo test --profile fuzz --test simulation

# Throws ten million inputs at each thing that reads what comes from outside, guided by coverage (about three quarters of an hour); needs a C++ compiler.
fuzz executions="10000000" *targets:
    tests/fuzz/run {{ executions }} {{ targets }}

# Puts known bugs into a copy of the code, and shows which test finds each.
bugs:
    tests/simulation/bugs/run

# Attacks the product, and a build of it whose stops are turned off one by one (about ten minutes).
attack *arguments:
    cargo testbed attack {{ arguments }}

# The scenarios on a real node; takes root.
node *arguments:
    cargo testbed node {{ arguments }}

# Kills the operator a thousand times at named points (about half an hour); --short is what CI does.
crash *arguments:
    cargo testbed crash {{ arguments }}

# Lets a thousand pods come and go while calls break and servers are killed (about a quarter of an hour); --short: as in CI, --pods N: so many.
churn *arguments:
    cargo testbed churn {{ arguments }}

# Shows what the sweep costs in a Vault that holds a hundred thousand tokens of others (about ten minutes).
foreign *arguments:
    cargo testbed foreign {{ arguments }}
