"""What the machine has: devices, memory, disks."""
