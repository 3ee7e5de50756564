# Sourced by the scripts: the suite as one static file.
#
# Needs: top (the repository), and packages.sh.

# What must not be in a static file, because glibc would load libraries of its own version for it: name services, character sets.
static_forbidden='(getpw(nam|uid|ent)|getgr(nam|gid|ent)|gethostby(name|addr)|getserv(byname|byport))(_r)?|getaddrinfo|getgrouplist|initgroups|iconv_open'

# build_static: make $static_binary, and $static_dist, which writes man pages and completions.
build_static() {
    ensure_build_packages
    if command -v apt-get >/dev/null; then
        ensure_packages "to link statically" libc.a:libc6-dev libelf.a:libelf-dev libz.a:zlib1g-dev nm:binutils
    else
        ensure_packages "to link statically" libc.a:glibc-static libelf.a:elfutils-libelf-devel-static libz.a:zlib-static nm:binutils
    fi
    local target=${CARGO_TARGET_DIR:-$top/target} libelf flags found
    static_triple=$(uname -m)-unknown-linux-gnu
    static_binary=$target/static/corescope
    static_dist=$target/$static_triple/release/dist
    libelf=$(cc -print-file-name=libelf.a)
    # Paths of this machine in messages and debugging information would make the file depend on where it was built.
    # Symbols stay until they have been looked at.
    flags="-C target-feature=+crt-static -C relocation-model=pie -C strip=none \
--remap-path-prefix=$top=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
    # Since elfutils 0.189 libelf may read sections that zstd compressed.
    if nm "$libelf" 2>/dev/null | grep -q 'U ZSTD_'; then
        ensure_packages "to link statically" libzstd.a:libzstd-dev
        flags+=" -C link-arg=-l:libzstd.a"
    fi
    # Build scripts watch SOURCE_DATE_EPOCH, and would run again for each of its values.
    # One binary, so that optimising it as a whole is paid for once.
    env -u SOURCE_DATE_EPOCH LIBBPF_SYS_LIBRARY_PATH="$(dirname "$libelf")" RUSTFLAGS="$flags" CARGO_PROFILE_RELEASE_LTO=fat \
        cargo build --quiet --release --locked --manifest-path "$top/Cargo.toml" --target "$static_triple" \
        --package tools --bin corescope --package dist --bin dist --features static
    found=$(nm "$target/$static_triple/release/corescope" | awk '{print $NF}' | grep -xE "$static_forbidden" || true)
    if [ -n "$found" ]; then
        echo "a static file must not use these functions of glibc:" $found >&2
        return 1
    fi
    mkdir -p "$(dirname "$static_binary")"
    # doctor tries memleak on the process that it is, whose allocator must have its names for that.
    strip --strip-all --keep-symbol=malloc --keep-symbol=calloc --keep-symbol=realloc --keep-symbol=free --remove-section=.comment \
        -o "$static_binary" "$target/$static_triple/release/corescope"
}
