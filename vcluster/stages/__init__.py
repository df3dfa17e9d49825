"""The stages of a node after its power-on: boot, configuration, NFS, check, path and provisioning."""
