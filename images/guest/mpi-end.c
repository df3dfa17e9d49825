/*
 * Without this library many MPI programs do not end. LD_PRELOAD loads it; it needs no other library, so any program can.
 *
 * Debian 12 has MPICH 4.0 over UCX. Its MPI_Finalize often never returns over TCP. A rank that has closed its connections
 * waits in a barrier and does not answer, while another rank waits for its answer to a close request.
 * (https://github.com/pmodels/mpich/pull/6596 fixes it in later versions; MPICH 4.2 of Debian 13 does not need this.)
 * The MPI standard requires that all communication is complete when a program calls MPI_Finalize. So this function closes
 * without a request to the peer; UCX drops the connections with its worker, after that barrier.
 */
#include <stddef.h>

/* Replaces the function of UCX (ucp/api/ucp.h); NULL means that the request is complete. */
void *ucp_disconnect_nb(void *endpoint)
{
    (void)endpoint;
    return NULL;
}
