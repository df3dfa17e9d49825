# shellcheck shell=bash
# Links outside the checkout: the command on the PATH, manual pages, completions of shells.

# Call a function with each link of $links, and the path in the checkout that it leads to.
for_each_link() {
    local link target
    while read -r link target; do
        [ -z "$link" ] || "$1" "$link" "$target"
    done <<<"$links"
}

make_links() { for_each_link make_link; }

# Make a link. A link of another checkout is replaced; any other file stays.
make_link() {
    local link=$1 target=$root/$2 present
    present=$(readlink -- "$link" || true)
    if [ "$present" = "$target" ]; then
        return 0
    elif [ -n "$present" ] && is_of_a_checkout "$present" "$2"; then
        say "$link led to another checkout, ${present%/"$2"}; now it leads to this one"
    elif [ -e "$link" ] || [ -L "$link" ]; then
        say "$link belongs to something else and stays as it is"
        return 0
    else
        say "$link leads to $target"
    fi
    mkdir -p "$(dirname "$link")"
    ln --symbolic --force --no-dereference -- "$target" "$link"
}

# Whether the target of a link is, or was, the file $2 of a checkout of vcluster.
is_of_a_checkout() {
    [[ $1 == */"$2" ]] && { [ ! -e "$1" ] || [ -e "${1%/"$2"}/scripts/lib.sh" ]; }
}

remove_links() { for_each_link remove_link; }

remove_link() {
    local link=$1 target=$root/$2
    if [ "$(readlink -- "$link" || true)" = "$target" ]; then
        rm -- "$link"
        say "removed $link"
        remove_empty_folders "$(dirname "$link")"
    elif [ -e "$link" ] || [ -L "$link" ]; then
        say "$link does not belong to this checkout and stays"
    fi
}

# Remove a folder that a link was in, and its parents, while they are empty. Folders of a Debian system stay.
remove_empty_folders() {
    local folder=$1
    while ! is_system_folder "$folder" && rmdir -- "$folder" 2>/dev/null; do
        folder=$(dirname "$folder")
    done
}

is_system_folder() {
    case $1 in
    /usr/local/bin | /usr/local/share | /usr/local/share/man) return 0 ;;
    *) return 1 ;;
    esac
}

# Another checkout whose command is on the PATH, if there is one.
other_checkout() {
    local present
    present=$(readlink /usr/local/bin/vcluster || true)
    [[ $present == */.venv/bin/vcluster && $present != "$root/.venv/bin/vcluster" && -e $present ]] || return 0
    printf '%s' "${present%/.venv/bin/vcluster}"
}

# The name that runs this vcluster: `vcluster` if the caller's PATH leads to it, else its path.
command_name() {
    local found
    found=$(PATH=$callers_path type -P vcluster || true)
    if [ -n "$found" ] && [ "$found" -ef "$root/.venv/bin/vcluster" ]; then
        printf vcluster
    else
        quoted "$root/.venv/bin/vcluster"
    fi
}

# A command of vcluster, as the reader types it.
hint() { as_typed "$(command_name) $*"; }
