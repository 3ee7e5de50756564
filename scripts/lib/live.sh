# To be sourced, from the top of the repository: how the live tests are built.
target=${CARGO_TARGET_DIR:-$top/target}

# Builds the tools and the live tests; their program is $live.
build_live() {
    cargo build --quiet --release --package tools --package tests --bins
    cargo test --quiet --package tests --test live --no-run
    live=$(cargo test --package tests --test live --no-run --message-format json 2>/dev/null |
        python3 -c 'import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable") and message["target"]["name"] == "live":
        print(message["executable"])')
}
