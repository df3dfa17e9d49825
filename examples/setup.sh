#!/bin/sh
# A provisioning script. vcluster runs it as root on every node. It needs no internet.
#
#     sudo vcluster provision examples/setup.sh
#
# It gives each node two things:
#   /scratch    a folder on the node's own disk, for temporary files of MPI programs (~/cloud is a network folder)
#   node-info   a command that prints one line: the node, its cluster, the head node, and the free space in /scratch
#
# You can run it again at any time: the result is the same.

set -eu # stop at the first command that fails, and at a variable that is not set

# vcluster sets four variables for the script: VCLUSTER_NODE, VCLUSTER_CLUSTER, VCLUSTER_HEAD and VCLUSTER_USER.

# The folder is for the cluster's user only.
mkdir -p /scratch
chown "$VCLUSTER_USER:" /scratch
chmod 700 /scratch

# The shell replaces $VCLUSTER_NODE while it writes the command, and \$free when the command runs.
# The new file replaces the old one in one step, so that the command is complete at any time.
command=/usr/local/bin/node-info
cat >$command.new <<END
#!/bin/sh
free=\$(df --output=avail -m /scratch | tail -n 1 | tr -d ' ')
echo "node=$VCLUSTER_NODE cluster=$VCLUSTER_CLUSTER head=$VCLUSTER_HEAD scratch_free_mib=\$free"
END
chmod 755 $command.new
mv $command.new $command

# Check the result as the cluster's user. If a command fails, vcluster reports the node and exits with 1.
runuser -u "$VCLUSTER_USER" -- sh -euc "touch /scratch/test; rm /scratch/test; $command"
