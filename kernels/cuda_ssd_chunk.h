/* cuda_ssd_chunk.h: what cuda_ssd_grad.cu and the products of a chunk in cuda_ssd_chunk.cu share;
 * private to them.
 *
 * The backward's chunks have two tiles of 64 tokens; decays are still summed from a tile's first
 * token, and what passes from one tile to the other fades by the product of two factors. Of the 64
 * x 64 blocks of a chunk's tokens three matter: 00, 10 and 11 (row tile, column tile). */
#ifndef SK_CUDA_SSD_CHUNK_H
#define SK_CUDA_SSD_CHUNK_H
#include "kernels/cuda_ssd.h"

enum { CHUNK_TOKENS = SSD_PER * SSD_TOKENS, CHUNK_THREADS = 256 };

struct ssd_grad_ws {
  float2 *steps;
  bf16 *S, *Z; // states [b][wides][nh]
  // Sums of a head, one for every token, in the order of steps:
  float2 *read;    // K's row within its tile, with the state's part q; dy_i . x_i
  float *early[2]; // K's row over either half of the tile before; second tiles alone
  float *column;   // K's column
  float2 *write;   // the part p through the state; x_j . dXt_j
  float *meet;     // [b * wides][nh][SSD_PARTS] parts of <Z, S>
  double2 *part;   // [b * wides][nh] sums over a chunk's tokens for A (times dt) and D
  bf16 *E;         // [b * wides][G][3][64][64] gradient of C B^T, blocks 00, 10, 11
};

struct ssd_grad_call {
  ssd_grad_ws w;
  int wides; // chunks of CHUNK_TOKENS of a sequence
  int parts; // that <Z, S> has
  bf16 *dx, *dB, *dC;
  bool wide_dx, wide_dB; // beside those of ssd_call, which are for reading
};

// dx, the sums of the heads, dB and dC.
void sk_cuda_ssd_chunks(sk_stream *s, const ssd_call *c, const ssd_grad_call *o);
#endif
