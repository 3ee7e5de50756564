# Sourced by the scripts: install what a step needs through the system's package manager, saying what and why.

# as_root COMMAND...: run it as root, with sudo where the caller is not root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"
    elif command -v sudo >/dev/null; then sudo "$@"
    else echo "this needs root, and sudo is not installed: $*" >&2; return 1
    fi
}

# have PROBE: PROBE is a command on PATH or, ending in .h or .a, a header or library that the C compiler finds.
have() {
    case $1 in
        *.a) command -v cc >/dev/null && [ "$(cc -print-file-name="$1")" != "$1" ] ;;
        *.h) command -v cc >/dev/null && echo "#include <$1>" | cc -E -xc - >/dev/null 2>&1 ;;
        *) command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] ;;
    esac
}

# ensure_packages REASON PROBE:PACKAGE...: install each PACKAGE whose PROBE is missing. PACKAGE is Debian's name.
ensure_packages() {
    local reason=$1 pair missing=()
    shift
    for pair in "$@"; do
        have "${pair%%:*}" || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} -eq 0 ] && return 0
    echo "installing, $reason: ${missing[*]}" >&2
    if command -v apt-get >/dev/null; then
        as_root apt-get update -qq
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2
    elif command -v dnf >/dev/null; then
        # Fedora and its kin name the development packages differently.
        local renamed=()
        for pair in "${missing[@]}"; do
            case $pair in
                libelf-dev) renamed+=(elfutils-libelf-devel) ;;
                zlib1g-dev) renamed+=(zlib-devel) ;;
                libc6-dev) renamed+=(glibc-devel) ;;
                pkg-config) renamed+=(pkgconf-pkg-config) ;;
                clang-format) renamed+=(clang-tools-extra) ;;
                iproute2) renamed+=(iproute) ;;
                xz-utils) renamed+=(xz) ;;
                *) renamed+=("$pair") ;;
            esac
        done
        as_root dnf install -y -q "${renamed[@]}" >&2
    else
        echo "no apt-get or dnf here; install by hand (Debian names): ${missing[*]}" >&2
        return 1
    fi
}

# What compiling the suite needs, besides Rust.
ensure_build_packages() {
    if ! command -v cargo >/dev/null; then
        echo "cargo is not on PATH: install Rust 1.88 or newer (https://rustup.rs or the distribution's package)" >&2
        return 1
    fi
    ensure_packages "to compile the suite" cc:gcc stdio.h:libc6-dev make:make clang:clang pkg-config:pkg-config \
        libelf.h:libelf-dev zlib.h:zlib1g-dev
}
