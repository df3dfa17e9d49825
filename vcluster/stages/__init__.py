"""What happens to a node after its power-on: boot, ssh, nfs, mpi, check."""
