"""Sealing: what must go from an image before it is cloned, each action a script for any Linux guest.

A clone that keeps its original's machine-id, host keys, leases or cloud-init state is taken for that original by the
network, by monitoring and by whoever trusts its keys. Sources: machine-id(5), systemd's docs/BUILDING_IMAGES.md,
cloud-init's `clean`, virt-sysprep(1). The scripts need a POSIX shell (busybox's will do) and leave alone what a guest
does not have; `imgtool.build.lint` looks for what they take away.
"""

from __future__ import annotations

from imgtool.build.recipe import SealAction

_MACHINE_ID = b"""\
# An empty file lets systemd make a new one, and keeps the place for it where /etc is read-only at that time.
if [ -e /etc/machine-id ]; then : > /etc/machine-id; fi
rm -f /var/lib/dbus/machine-id
if [ -d /var/lib/dbus ] && [ -e /etc/machine-id ]; then ln -s /etc/machine-id /var/lib/dbus/machine-id; fi
# The seed for randomness is another identity; the service would save one again at shutdown.
if command -v systemctl >/dev/null 2>&1; then systemctl stop systemd-random-seed.service >/dev/null 2>&1 || :; fi
rm -f /var/lib/systemd/random-seed /var/lib/random-seed /var/lib/urandom/random-seed /var/lib/seedrng/seed.*
rm -f /var/lib/systemd/credential.secret /loader/random-seed /boot/loader/random-seed /efi/loader/random-seed
"""

_HOST_KEYS = b"""\
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub /etc/dropbear/dropbear_*_host_key
# Somebody has to make new ones. Alpine's sshd does, so does cloud-init; where neither is there, a unit of ours.
if [ -d /etc/ssh ] && command -v systemctl >/dev/null 2>&1 && ! command -v cloud-init >/dev/null 2>&1 &&
    command -v ssh-keygen >/dev/null 2>&1; then
    if ! grep -rqs 'ssh-keygen -A' /lib/systemd/system /usr/lib/systemd/system /etc/systemd/system; then
        cat > /etc/systemd/system/ssh-host-keys.service <<'UNIT'
[Unit]
Description=Make the SSH host keys of this machine
Before=ssh.service sshd.service ssh.socket sshd.socket
ConditionPathExistsGlob=!/etc/ssh/ssh_host_*_key

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=multi-user.target
UNIT
        systemctl enable ssh-host-keys.service
    fi
fi
"""

_CLOUD_INIT = b"""\
if command -v cloud-init >/dev/null 2>&1; then
    cloud-init clean --logs --seed >/dev/null 2>&1 || cloud-init clean --logs
fi
rm -rf /var/lib/cloud/instances /var/lib/cloud/instance /var/lib/cloud/sem /var/lib/cloud/data
rm -f /var/log/cloud-init.log /var/log/cloud-init-output.log
rm -f /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init /etc/sudoers.d/90-cloud-init-users
# The key that led the build in is for the build alone.
for file in /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys; do
    if [ -f "$file" ] && grep -q ' imgtool-build$' "$file"; then
        grep -v ' imgtool-build$' "$file" > "$file.sealed" || :
        cat "$file.sealed" > "$file"
        rm -f "$file.sealed"
    fi
done
"""

_LOGS = b"""\
if command -v journalctl >/dev/null 2>&1; then
    # What is logged from here on stays in memory.
    journalctl --relinquish-var >/dev/null 2>&1 || :
fi
if command -v systemctl >/dev/null 2>&1; then
    systemctl stop rsyslog.service syslog.socket syslog-ng.service >/dev/null 2>&1 || :
fi
rm -rf /var/log/journal/*
if [ -d /var/log ]; then
    for old in '*.gz' '*.xz' '*.[0-9]' '*.old'; do find /var/log -xdev -type f -name "$old" -exec rm -f {} +; done
    find /var/log -xdev -type f -exec sh -c 'for file; do : > "$file"; done' sh {} +
fi
rm -rf /var/crash/* /var/lib/systemd/coredump/*
"""

_PACKAGES = b"""\
if command -v apt-get >/dev/null 2>&1; then
    apt-get clean
    rm -rf /var/lib/apt/lists/*
    rm -f /var/cache/apt/*.bin
fi
if command -v dnf >/dev/null 2>&1; then dnf -q clean all || :; fi
if command -v yum >/dev/null 2>&1; then yum -q clean all || :; fi
if command -v zypper >/dev/null 2>&1; then zypper --quiet clean --all || :; fi
rm -f /var/cache/apt/archives/*.deb
rm -rf /var/cache/apk/* /var/cache/dnf/* /var/cache/yum/* /root/.cache/pip
"""

_LEASES = b"""\
rm -f /var/lib/dhcp/*.lease* /var/lib/dhcp/*.leases* /var/lib/dhclient/* /var/lib/dhcpcd/*.lease* /var/lib/udhcpc/*
rm -rf /var/lib/NetworkManager/*.lease /var/lib/NetworkManager/secret_key /var/lib/NetworkManager/timestamps
rm -f /var/lib/NetworkManager/seen-bssids /var/lib/dhcpcd/duid /etc/dhcpcd.duid
rm -rf /var/lib/systemd/network/*
rm -f /etc/udev/rules.d/70-persistent-net.rules
"""

_HISTORY = b"""\
for home in /root /home/*; do
    rm -f "$home/.bash_history" "$home/.ash_history" "$home/.sh_history" "$home/.zsh_history" "$home/.lesshst"
    rm -f "$home/.python_history" "$home/.viminfo" "$home/.wget-hsts"
done
rm -rf /tmp/* /var/tmp/*
rm -f /var/mail/* /var/spool/mail/*
"""

_TRIM = b"""\
sync
if command -v fstrim >/dev/null 2>&1; then
    # --all reads mounts that a bare system may not list; the root is what matters.
    fstrim -a 2>/dev/null || fstrim / 2>/dev/null || echo "the guest's file system or disk does not trim"
fi
"""

SCRIPTS: dict[SealAction, bytes] = {
    "machine-id": _MACHINE_ID,
    "ssh-host-keys": _HOST_KEYS,
    "cloud-init": _CLOUD_INIT,
    "logs": _LOGS,
    "package-cache": _PACKAGES,
    "dhcp-leases": _LEASES,
    "history": _HISTORY,
    "trim": _TRIM,
}
"""By the action's name in a recipe. Run by `/bin/sh -eu`."""

ORDER: tuple[SealAction, ...] = (
    "package-cache",
    "cloud-init",
    "dhcp-leases",
    "history",
    "ssh-host-keys",
    "machine-id",
    "logs",
    "trim",
)
"""Later ones take away what earlier ones leave: logs of the cleaning, freed space."""


def scripts(actions: tuple[SealAction, ...]) -> list[tuple[SealAction, bytes]]:
    """The scripts of `actions`, in the order in which they work."""
    return [(action, SCRIPTS[action]) for action in ORDER if action in actions]
