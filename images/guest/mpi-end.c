/*
 * Lets MPI programs end. To be preloaded; it needs no library itself, so any program may have it.
 *
 * MPI_Finalize of MPICH 4.0 over UCX, which is what Debian 12 has, often never returns over TCP: a rank that has closed its
 * connections waits in a barrier and answers nothing any more, while another still waits for its answer to a close
 * (https://github.com/pmodels/mpich/pull/6596 mends it in later versions). When MPICH closes, all communication is complete,
 * as the MPI standard demands of whoever calls MPI_Finalize. So closing asks nobody here, and UCX drops the connections
 * together with its worker, behind that barrier.
 */
#include <stddef.h>

/* Of UCX (ucp/api/ucp.h); a null request is one that is complete. */
void *ucp_disconnect_nb(void *endpoint)
{
    (void)endpoint;
    return NULL;
}
