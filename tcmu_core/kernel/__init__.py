"""The kernel's side of the house: TCM-user's ring, its uio device, configfs and netlink."""
