/* cuda_ssd_chunk.cu: the products of the SSD's backward within a chunk (section 3.4), by
 * warpgroups.
 *
 *   read, write  the two sides, a block per chunk and group each; one head after the other, so that
 *                dB, dC and the gradient E of C B^T are sums over heads that never leave the block,
 *                in their order. At the end dC += E B, dB += E^T C
 *
 * Tokens i read the state, tokens j write to it; F_ij = dy_i . x_j, E_ij = F_ij L_ij dt_j and
 * K_ij = E_ij (C_i . B_j).
 *
 *           rows  U  u   W    gives
 *   READ    i     C  dy  S    E, K's sums over rows and columns, dC_i += in_i S^T dy_i
 *   WRITE   j     B  x   Z    dx, dB_j += out_j dt_j Z^T x_j
 *
 * A warpgroup has the rows of one tile of tokens. For the block 10 both have its rows and half of
 * its columns in READ, and the first has all of it, transposed, in WRITE.
 *
 * What a head adds to C_i . S^T dy_i is the difference of C_i . dC_i after and before it: in fp32,
 * that costs no product and is exact enough. */
#include "kernels/cuda_ssd_read.h"
#include "kernels/cuda_ssd_write.h"

namespace {

// A block per chunk and group; the sides are kernels of their own, as one for both spills
// registers.
template <int NN>
__global__ void __launch_bounds__(CHUNK_THREADS, 1) read(ssd_call c, ssd_grad_call o) {
  read_side<NN>(c, o, (int)blockIdx.x / c.G, (int)blockIdx.x % c.G);
}
template <int NN>
__global__ void __launch_bounds__(CHUNK_THREADS, 1) write(ssd_call c, ssd_grad_call o) {
  write_side<NN>(c, o, (int)blockIdx.x / c.G, (int)blockIdx.x % c.G);
}

template <class Kernel>
void launch_side(sk_stream *s, Kernel kernel, size_t bytes, int64_t blocks, const ssd_call &c,
                 const ssd_grad_call &o) {
  ssd_memory(kernel, bytes);
  kernel<<<(unsigned)blocks, CHUNK_THREADS, bytes, sk_cuda_stream(s)>>>(c, o);
  SK_CUDA(cudaGetLastError());
}

template <int NN>
void launch(sk_stream *s, const ssd_call &c, const ssd_grad_call &o) {
  int64_t blocks = (int64_t)c.b * o.wides * c.G;
  SK_CHECK(blocks < INT_MAX, "ssd_grad: %lld blocks", (long long)blocks);
  launch_side(s, read<NN>, sizeof(read_memory<NN>), blocks, c, o);
  launch_side(s, write<NN>, sizeof(write_memory<NN>), blocks, c, o);
}

} // namespace

void sk_cuda_ssd_chunks(sk_stream *s, const ssd_call *c, const ssd_grad_call *o) {
  if (c->N <= 64)
    launch<64>(s, *c, *o);
  else if (c->N <= 128)
    launch<128>(s, *c, *o);
  else
    launch<256>(s, *c, *o);
}
