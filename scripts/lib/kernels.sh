# Sourced by the scripts: stock kernels of Debian, fetched once, and what booting them needs.
#
# A line of kernels is what one suite of Debian carries; its folder in the cache holds one version, with
#   vmlinuz     the kernel
#   lib/        its modules
#   initrd      modules and a script that mount this machine's root; made when it is first booted
#   btf         its types
#   version     its release, written last

kernel_cache=${XDG_CACHE_HOME:-$HOME/.cache}/corescope/kernels
kernel_lines="5.10 6.1 6.12 7"
debian=${CORESCOPE_DEBIAN:-http://deb.debian.org}

# What fetching and booting them needs, as ensure_packages takes it.
vm_packages=(curl:curl xz:xz-utils zstd:zstd dpkg-deb:dpkg python3:python3 qemu-system-x86_64:qemu-system-x86
    busybox:busybox-static modprobe:kmod cpio:cpio)

# ensure_vm_packages: that, and what the live tests there of file systems need.
ensure_vm_packages() {
    ensure_packages "to boot other kernels" "${vm_packages[@]}" \
        mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs mkfs.btrfs:btrfs-progs
}

# have_vm_packages: whether it is all there to fetch and boot them.
have_vm_packages() {
    local pair
    for pair in "${vm_packages[@]}"; do
        have "${pair%%:*}" || return 1
    done
}

# The suite of a line, and the archive that has it: "SUITE ARCHIVE".
kernel_suite() {
    case $1 in
        5.10) echo bullseye-security debian-security ;;
        6.1) echo bookworm-security debian-security ;;
        6.12) echo trixie-security debian-security ;;
        7) echo sid debian ;;
        *) echo "no kernel line $1 (there are $kernel_lines)" >&2; return 2 ;;
    esac
}

# The stanzas of the packages of the newest stock kernel of a line, as "RELEASE PACKAGE FILE SHA256", from the index on
# standard input. Cloud, real-time and unsigned kernels are other packages; since 7.x the kernel lies in linux-binary
# and the modules in linux-modules, and linux-image only depends on them.
newest_kernel() {
    awk -v line="$1." '
        function done_with() {
            if (package ~ /^linux-(image|modules|binary)-[0-9]/ && index(release, line) == 1)
                print release, package, file, sum
        }
        /^Package: / {
            package = $2
            release = package
            sub(/^linux-(image|modules|binary)-/, "", release)
            if (release !~ /^[0-9][0-9.]*(\+deb[0-9]+)?(-[0-9]+)?(\+deb[0-9]+)?-amd64$/ || release ~ /^[0-9]+\.[0-9]+-amd64$/)
                release = ""
        }
        /^Filename: / { file = $2 }
        /^SHA256: / { sum = $2 }
        /^$/ { done_with(); file = sum = "" }
        END { done_with() }' |
        sort -V | awk '{ lines[NR] = $0; release = $1 } END { for (i = 1; i <= NR; i++) { split(lines[i], field, " "); if (field[1] == release) print lines[i] } }'
}

# fetch_kernel LINE: see that the cache holds the newest kernel of the line, and print its release. Where the package
# index cannot be had, a kernel that is there serves, which is said; fails where there is none.
fetch_kernel() {
    local line=$1 dir=$kernel_cache/$1 suite archive index since packages release
    read -r suite archive < <(kernel_suite "$line") || return 2
    mkdir -p "$dir"
    # One that has not changed is not fetched again.
    index=$kernel_cache/$suite.xz
    since=()
    [ ! -e "$index" ] || since=(-z "$index")
    if curl -sSf --connect-timeout 20 --retry 2 -R "${since[@]}" -o "$index.new" \
        "$debian/$archive/dists/$suite/main/binary-amd64/Packages.xz"; then
        [ ! -s "$index.new" ] || mv "$index.new" "$index"
        packages=$(xz -dc "$index" | newest_kernel "$line")
        release=${packages%% *}
        if [ -z "$release" ]; then
            echo "the index of $suite has no kernel $line" >&2
        elif [ "$release" != "$(cat "$dir/version" 2>/dev/null)" ]; then
            unpack_kernel "$dir" "$release" "$packages" "$debian/$archive" || return 1
        fi
    else
        [ -e "$dir/version" ] && echo "the package index of $suite cannot be had: taking the kernel in the cache" >&2
    fi
    cat "$dir/version" 2>/dev/null
}

# unpack_kernel FOLDER RELEASE STANZAS URL
unpack_kernel() {
    local final=$1 dir=$1.new release=$2 url=$4 package file sum
    echo "fetching the kernel $release" >&2
    rm -rf "$dir" && mkdir -p "$dir" || return 1
    while read -r _ package file sum; do
        curl -sSf --retry 2 -o "$dir/package.deb" "$url/$file" || return 1
        if [ "$(sha256sum < "$dir/package.deb")" != "$sum  -" ]; then
            echo "$package is not what the index says" >&2
            return 1
        fi
        dpkg-deb -x "$dir/package.deb" "$dir/packages" || return 1
        rm "$dir/package.deb"
    done <<< "$3"
    # Some packages have them in /lib, some in /usr/lib.
    local found
    mkdir -p "$dir/lib/modules/$release"
    find "$dir/packages" -name 'vmlinuz*' -type f -exec mv {} "$dir/vmlinuz" \;
    for found in "$dir/packages/lib/modules/$release" "$dir/packages/usr/lib/modules/$release"; do
        [ ! -d "$found" ] || cp -a "$found/." "$dir/lib/modules/$release/" || return 1
    done
    [ -e "$dir/vmlinuz" ] && [ -d "$dir/lib/modules/$release/kernel" ] || { echo "no kernel in the packages of $release" >&2; return 1; }
    # Half of the modules are for hardware that no virtual machine has.
    (cd "$dir/lib/modules/$release/kernel" &&
        rm -rf sound drivers/{gpu,media,infiniband,staging,iio,usb,hwmon,net/wireless,net/ethernet})
    rm -rf "$dir/packages"
    python3 "$top/scripts/lib/carve_btf.py" "$dir/vmlinuz" "$dir/btf" || return 1
    PATH=$PATH:/usr/sbin:/sbin depmod -b "$dir" "$release" 2>/dev/null || return 1
    echo "$release" > "$dir/version"
    rm -rf "$final" && mv "$dir" "$final"
}

# make_initrd FOLDER RELEASE: modules to reach this machine's root, a shell, and scripts/lib/vm/init.
make_initrd() {
    local dir=$1 release=$2 root module number=100 command
    root=$(mktemp -d)
    mkdir -p "$root"/{bin,modules,proc,sys,dev,host,changes,root}
    cp "$(command -v busybox)" "$root/bin/busybox"
    for command in insmod mkdir mount poweroff sh switch_root umount; do ln -s busybox "$root/bin/$command"; done
    cp "$top/scripts/lib/vm/init" "$root/init"
    chmod +x "$root/init"
    # One that is not found is built in, which not every kernel's packages say.
    for module in virtio_pci virtio_blk virtio_console 9pnet_virtio 9p overlay; do
        PATH=$PATH:/usr/sbin:/sbin modprobe -d "$dir" -S "$release" --show-depends "$module" 2>/dev/null || true
    done | awk '/^insmod/ && !seen[$2]++ { print $2 }' | while read -r module; do
        number=$((number + 1))
        case $module in
            *.xz) xz -dc "$module" ;;
            *.zst) zstd -qdc "$module" ;;
            *) cat "$module" ;;
        esac > "$root/modules/$number.ko"
    done
    (cd "$root" && find . | cpio --quiet -o -H newc | gzip -1) > "$dir/initrd"
    rm -rf "$root"
}
