# Every target sets up what it needs: Debian packages (through apt-get, with sudo when not root), then .venv.

PACKAGES_DEMO := python3-venv qemu-system-x86 qemu-utils
PACKAGES_TEST := $(PACKAGES_DEMO) iproute2 mount procps nftables dnsmasq-base busybox \
    gcc libc6-dev openssh-client ovmf passt qemu-guest-agent strace swtpm \
    apache2-utils docker-registry skopeo \
    fish fuse3 libnbd-bin libvirt-clients libvirt-daemon libvirt-daemon-driver-qemu libxml2-utils \
    netcat-openbsd openssh-server qemu-block-extra swtpm-tools zsh \
    debian-archive-keyring e2fsprogs fakeroot mmdebstrap
# Debian 12 has virtiofsd in qemu-system-common and SPICE in QEMU itself; it and Ubuntu 24.04 have libvirt's drivers in
# libvirt-daemon.
PACKAGES_TEST += $(shell . /etc/os-release 2>/dev/null; \
    [ "$$ID $${VERSION_ID%%.*}" = "debian 12" ] || echo qemu-system-modules-spice virtiofsd; \
    case "$$ID $${VERSION_ID%%.*}" in ("debian 12" | "ubuntu 24") ;; \
    (*) echo libvirt-daemon-driver-network libvirt-daemon-driver-storage ;; esac)
PACKAGES_MATRIX := $(PACKAGES_TEST)
PACKAGES_BENCH := $(PACKAGES_DEMO) libvirt-clients libvirt-daemon-system

PYTHON := .venv/bin/python
INSTALLED := .venv/installed

.PHONY: help demo test lint matrix fuzz faults kills bench clean

help:
	@echo 'make demo    see it work: a chain, overlays, a real guest booted from them'
	@echo 'make test    lint and all tests'
	@echo 'make lint    ruff and mypy --strict'
	@echo 'make matrix  the QEMU-facing tests against QEMU 5.2, 7.2 and 10.0'
	@echo 'make fuzz    the header readers against qemu-img on 44,000 damaged images; half an hour'
	@echo 'make faults  kill and fail every write of every operation on images; half an hour'
	@echo 'make kills   kill -9 imgtool and QEMU at 100 moments of VMs, and 50 of a real build; half an hour'
	@echo 'make bench   times beside those of qemu-img, libvirt and scripts; 25 minutes on a quiet machine'
	@echo 'make clean   remove what these made here'

demo: packages-demo $(INSTALLED)
	$(PYTHON) -m fixtures.demo

test: packages-test $(INSTALLED) lint
	$(PYTHON) -m pytest -n 2 --dist loadfile

lint: $(INSTALLED)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

matrix: packages-matrix $(INSTALLED)
	$(PYTHON) -m fixtures.matrix

fuzz: packages-test $(INSTALLED)
	$(PYTHON) -m tests.image.fuzz

faults: packages-test $(INSTALLED)
	@[ ! -w /dev/shm ] || export TMPDIR=/dev/shm; $(PYTHON) -m tests.faults.sweep --keep-going

kills: packages-test $(INSTALLED)
	$(PYTHON) -m tests.machine.kills --count 100
	$(PYTHON) -m tests.build.kills --count 50

bench: packages-bench $(INSTALLED)
	$(PYTHON) -m fixtures.bench --json bench.json

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(INSTALLED): pyproject.toml | packages-demo
	python3 -m venv .venv
	.venv/bin/pip install --quiet --config-settings editable_mode=compat --editable '.[test]'
	touch $@

# Asks dpkg first: where everything is there, no root and no network are needed.
.PHONY: packages-demo packages-test packages-matrix packages-bench
packages-demo: WANTED = $(PACKAGES_DEMO)
packages-test: WANTED = $(PACKAGES_TEST)
packages-matrix: WANTED = $(PACKAGES_MATRIX)
packages-bench: WANTED = $(PACKAGES_BENCH)
packages-demo packages-test packages-matrix packages-bench:
	@if ! command -v apt-get >/dev/null; then \
	    for program in qemu-img qemu-system-x86_64; do \
	        command -v $$program >/dev/null || missing=yes; \
	    done; \
	    if [ -n "$$missing" ]; then \
	        echo 'This is no Debian. Install what these Debian packages hold, then run make again:' >&2; \
	        echo '    $(WANTED)' >&2; exit 1; \
	    fi; exit 0; \
	fi; \
	for package in $(WANTED); do \
	    dpkg-query -W -f '$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	[ -n "$$missing" ] || exit 0; \
	root=; [ "$$(id -u)" = 0 ] || root=sudo; \
	echo "Installing:$$missing"; \
	$$root apt-get -q update && \
	$$root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $$missing
