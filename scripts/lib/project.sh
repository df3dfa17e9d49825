# shellcheck shell=bash
# The project in its virtual environment, .venv.

# Make .venv and install the project into it, editable, with the extra $1 (test) if given. The file `installed` is
# written last and holds the digest of setup.py: without it, .venv is unfinished. The libvirt binding is a package of
# the system, so .venv shows these packages.
install_project() {
    local extra=${1:-} digest lock
    digest=$(sha256sum <"$root/setup.py")
    if project_is_installed "$extra" "$digest"; then
        return 0
    fi
    require_writable "$root" "$root"/{.venv,.venv/bin,vcluster.egg-info}
    open_log
    exec {lock}>"$root/build/lock"
    if ! flock --nonblock "$lock"; then # pip may have outlived the script that started it
        say "another installation in $root is running; waiting for its end"
        flock "$lock"
    fi
    if project_is_installed "$extra" "$digest"; then # by that other one
        exec {lock}>&-
        return 0
    fi
    say "installing the project into $root/.venv"
    make_environment
    rm -f "$root"/.venv/installed*
    (cd "$root" && quietly "$root/.venv/bin/python" -I -m pip install --editable ".${extra:+[$extra]}")
    echo "$digest" | tee "$root/.venv/installed" >"$root/.venv/installed${extra:+-$extra}"
    exec {lock}>&-
}

project_is_installed() {
    local extra=$1 digest=$2
    [ "$(cat "$root/.venv/installed${extra:+-$extra}" 2>/dev/null)" = "$digest" ] &&
        [ "$(loaded_from)" = "$root/vcluster" ]
}

# Make .venv, unless it can be used as it is.
make_environment() {
    if [ -e "$root/.venv/installed" ] && environment_is_usable; then
        return 0
    fi
    rm -rf "$root"/.venv/installed* # first, so that an interruption cannot leave it
    rm -rf "$root/.venv"
    quietly /usr/bin/python3 -I -m venv --system-site-packages "$root/.venv"
}

# Whether .venv was made to its end, and here, and pip works in it. A virtual environment that was moved or copied still
# runs in its old place.
environment_is_usable() {
    grep -qx 'include-system-site-packages = true' "$root/.venv/pyvenv.cfg" 2>/dev/null &&
        [[ "$("$root/.venv/bin/pip" --version 2>/dev/null)" == *" from $root/.venv/"* ]]
}

# The folder that .venv loads vcluster from.
loaded_from() {
    local program='import os, vcluster; print(os.path.dirname(vcluster.__file__))'
    (cd / && "$root/.venv/bin/python" -I -c "$program" 2>/dev/null)
}

# Run the installed command once, and compare the place of its code with this checkout.
check_command() {
    local command=$root/.venv/bin/vcluster answer
    if ! answer=$(cd / && "$command" --version 2>&1) || [ "$(loaded_from)" != "$root/vcluster" ]; then
        say "$(basename -- "$0"): $command does not run the code of $root. It printed:"
        say "$answer"
        say "To install it again: $(as_typed "rm -r $(quoted "$root/.venv")"), then $(as_typed "$(this_command)")"
        exit 1
    fi
    say "$answer, from $root"
}
