# What holdfast's containers may do where neither the pod nor an administrator says otherwise. Loaded by the daemon at its
# start; do not edit a copy of it under the same name: it is replaced. Files, capabilities and sockets are the business of
# mounts, capability sets, seccomp and network policies; this profile keeps containers from what reaches past their namespaces
# should one of those fail.
profile holdfast-default flags=(attach_disconnected, mediate_deleted) {
  file,
  network,
  capability,
  umount,
@RULES@

  # The runtime may signal its containers, and they each other; debuggers see no further than this profile.
  signal (receive) peer=unconfined,
@PEER@
  signal (send, receive) peer=holdfast-default,
  ptrace (read, readby, trace, tracedby) peer=holdfast-default,

  # New mounts would cover or uncover the paths that follow.
  deny mount,

  # The machine's own switches and memory.
  deny /proc/{kcore,kmem,mem,sysrq-trigger} rwklx,
  deny /proc/* w,
  deny /proc/{acpi,asound,bus,driver,fs,irq,scsi,tty}/** wklx,
  # Of the sysctls only those of the network and of System V's objects belong to a pod: /proc/sys/net, kernel/{msg,sem,shm}*.
  deny /proc/sys/{abi,crypto,debug,dev,fs,sunrpc,user,vm}/** wklx,
  deny /proc/sys/kernel/{[^ms],m[^s],s[^eh]}** wklx,
  deny /sys/{block,bus,class,dev,devices,firmware,hypervisor,kernel,module,power}/** wklx,
  deny /sys/fs/{[^c],c[^g]}** wklx,
  # Not even to be read: firmware tables, the kernel's internals, and power meters, which tell secrets of other programs.
  deny /sys/firmware/** r,
  deny /sys/kernel/{debug,security,tracing}/** r,
  deny /sys/devices/virtual/powercap/** r,
}
