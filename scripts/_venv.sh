# Sourced by the other scripts, from the repository's root: makes .venv with the extras asked
# for, at the tested versions, unless it has them already.
#   venv_with EXTRAS     e.g. venv_with cpu,tensorrt
venv_with() {
    local extras=$1 stamp
    stamp=".venv/.installed-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)-${extras//,/-}"
    if [ -e "$stamp" ]; then
        return
    fi
    if [ ! -x .venv/bin/python ]; then
        echo "Making .venv with $(python3 --version)" >&2
        python3 -m venv .venv || {
            echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv" >&2
            return 1
        }
    fi
    echo "Installing peregrine[$extras] into .venv (a few minutes the first time)" >&2
    .venv/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
    touch "$stamp"
}
