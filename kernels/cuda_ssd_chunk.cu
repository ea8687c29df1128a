/* cuda_ssd_chunk.cu: the products of the SSD's backward within a chunk (section 3.4), by
 * warpgroups.
 *
 *   sides   a block per chunk, group and side; one head after the other, so that dB, dC and the
 *           gradient E of C B^T are sums over heads that never leave the block, in their order
 *   close   dC += E B, dB += E^T C
 *
 * Tokens i read the state, tokens j write to it; F_ij = dy_i . x_j, E_ij = F_ij L_ij dt_j and
 * K_ij = E_ij (C_i . B_j).
 *
 *           rows  U  u   W    gives
 *   READ    i     C  dy  S    E, K's sums over rows and columns, dC_i += in_i S^T dy_i
 *   WRITE   j     B  x   Z    dx, dB_j += out_j dt_j Z^T x_j, <Z, S>
 *
 * A warpgroup has the rows of one tile of tokens. For the block 10 both have its rows and half of
 * its columns in READ, and the first has all of it, transposed, in WRITE.
 *
 * What a head adds to C_i . S^T dy_i is the difference of C_i . dC_i after and before it: in fp32,
 * that costs no product and is exact enough. */
#include "kernels/cuda_ssd_read.h"
#include "kernels/cuda_ssd_write.h"

namespace {

// The two sides of a chunk are neighbours, so that what both read may be in the L2 cache; `apart`: all
// of WRITE, which take longer, come first, so that an SM with two blocks has one of each.
template <int NN>
__global__ void __launch_bounds__(CHUNK_THREADS, 1)
    sides(ssd_call c, ssd_grad_call o, bool apart) {
  int half = (int)gridDim.x / 2, place = apart ? (int)blockIdx.x % half : (int)blockIdx.x / 2;
  int group = place % c.G, task = place / c.G;
  if (apart ? (int)blockIdx.x >= half : blockIdx.x % 2 == 0)
    read_side<NN>(c, o, task, group);
  else
    write_side<NN>(c, o, task, group);
}

// ---- close ----

template <int NC>
struct close_memory {
  bf16 V[2 * 64 * NC], E[3][PANEL];
};

// A block per chunk, group, side and NC columns.
template <int NC>
__global__ void __launch_bounds__(CHUNK_THREADS, 2) close(ssd_call c, ssd_grad_call o) {
  extern __shared__ __align__(1024) unsigned char ssd_shared[];
  close_memory<NC> &m = *(close_memory<NC> *)ssd_shared;
  int i = (int)blockIdx.x, group = i / 2 % c.G, task = i / 2 / c.G, w = group_here();
  int n0 = (int)blockIdx.y * NC, cols = c.N - n0, NN = NC * (int)gridDim.y;
  bool write = i % 2;
  wide_chunk a = wide_at(c, o, task);
  int64_t at = a.row * c.ld + (int64_t)group * c.N + n0, place = (int64_t)task * c.G + group;
  load_panels<NC, CHUNK_TOKENS, CHUNK_THREADS>(m.V, (const bf16 *)(write ? c.C : c.B) + at, c.ld,
                                               a.n, cols, c.wide_B);
  for (int k = 0; k < 3; k++)
    load_panels<64, 64, CHUNK_THREADS>(m.E[k], o.w.E + (3 * place + k) * PANEL, 64, 64, 64, true);
  cp_async_commit();
  float d[NC / 64][8][4];
  const float4 *from = o.w.du + ((2 * place + write) * NN + n0) / 8 * CHUNK_THREADS + threadIdx.x;
#pragma unroll
  for (int n = 0; n < NC / 8; n++) {
    float4 x = from[n * CHUNK_THREADS];
    float *y = d[n / 8][n % 8];
    y[0] = x.x, y[1] = x.y, y[2] = x.z, y[3] = x.w;
  }
  arrive();
  for (int tile = write ? w : 0; tile <= (write ? 1 : w); tile++) {
    const bf16 *E = m.E[w + tile];
    uint32_t p[4][4], rows = rows_address<64>(E, 16 * warp_here()),
                      columns = columns_address<64>(E, 0);
#pragma unroll
    for (int k = 0; k < 4; k++) {
      if (write)
        ldmatrix_trans(p[k], further<64>(columns, 16 * k, 2 * warp_here()));
      else
        ldmatrix(p[k], further<64>(rows, 0, 2 * k));
    }
    uint64_t b = wg_tile(shared_address(m.V + tile * 64 * NC), 0);
    wg_begin();
#pragma unroll
    for (int k = 0; k < 4; k++)
#pragma unroll
      for (int h = 0; h < NC / 64; h++)
        wg_mma_rows(d[h], p[k], b + (h * PANEL * 2 + k * 16 * 128) / 16);
    wg_commit();
    wg_wait<0>();
#pragma unroll
    for (int h = 0; h < NC / 64; h++) wg_done(d[h]);
  }
  __syncthreads();
  bf16 *to = (write ? o.dB : o.dC) + at + (int64_t)64 * w * c.ld;
#pragma unroll
  for (int h = 0; h < NC / 64; h++)
    store_rows<64>(to + 64 * h, c.ld, m.V + (w * (NC / 64) + h) * PANEL, d[h], 16 * warp_here(), 0,
                   a.n - 64 * w, cols - 64 * h, o.wide_dB);
}

template <int NN>
void launch(sk_stream *s, const ssd_call &c, const ssd_grad_call &o) {
  constexpr int NC = NN <= 128 ? NN : 128;
  size_t read = sizeof(read_memory<NN>), write = sizeof(write_memory<NN>);
  size_t bytes = read > write ? read : write;
  int64_t blocks = (int64_t)c.b * o.wides * c.G * 2;
  SK_CHECK(blocks < INT_MAX, "ssd_grad: %lld blocks", (long long)blocks);
  ssd_memory(sides<NN>, bytes);
  bool apart = blocks <= 2 * sk_cuda_sms(s);
  sides<NN><<<(unsigned)blocks, CHUNK_THREADS, bytes, sk_cuda_stream(s)>>>(c, o, apart);
  SK_CUDA(cudaGetLastError());
  dim3 grid((unsigned)blocks, NN / NC);
  ssd_memory(close<NC>, sizeof(close_memory<NC>));
  close<NC><<<grid, CHUNK_THREADS, sizeof(close_memory<NC>), sk_cuda_stream(s)>>>(c, o);
  SK_CUDA(cudaGetLastError());
}

} // namespace

void sk_cuda_ssd_chunks(sk_stream *s, const ssd_call *c, const ssd_grad_call *o) {
  switch (ssd_columns(c->N)) {
    case 64:
      return launch<64>(s, *c, *o);
    case 128:
      return launch<128>(s, *c, *o);
    default:
      return launch<256>(s, *c, *o);
  }
}
