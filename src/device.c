#include "src/device.h"
#include "src/transport.h"
#include <stdlib.h>
#include <string.h>

const sk_comm_ops *sk_device_comm(const sk_ops *op) {
  return op == sk_cuda && sk_comm_nccl ? sk_comm_nccl : &sk_comm_mpi;
}

bool sk_device_branches(const sk_ops *op) { return op == sk_cuda; }

const sk_comm_ops *sk_device_pipe(const sk_ops *op, const sk_comm_ops *comm, const sk_config *cfg) {
  int t = cfg->parallel.transport;
  bool host = op != sk_cuda && (t == SK_TRANSPORT_AUTO || t == SK_TRANSPORT_MPI);
  return host ? comm : sk_transport_table(t);
}

double sk_device_peak(const char *describe, sk_dtype act) {
  static const struct {
    const char *name;
    double bf16, fp32; /* TFLOP/s */
  } known[] = {{"H100 PCIe", 756, 51}, {"H100 NVL", 835, 60},  {"H100", 989, 67}, {"H200", 989, 67},
               {"GH200", 989, 67},     {"A100", 312, 19.5}};
  for (size_t i = 0; i < sizeof known / sizeof *known; i++)
    if (strstr(describe, known[i].name)) return 1e12 * (act == SK_BF16 ? known[i].bf16 : known[i].fp32);
  return 0;
}

sk_dtype sk_device_act(const sk_ops *op, const sk_config *cfg) {
  return op == sk_cuda && cfg->train.dtype == SK_DTYPE_BF16 ? SK_BF16 : SK_F32;
}

int sk_device_fits(int ranks, int gpus, const char *visible, const char *host, sk_err *e) {
  if (gpus == 0 || ranks <= gpus) return SK_OK;
  const char *many = gpus == 1 ? "" : "s";
  return sk_fail(e, SK_FAILED,
                 "%d ranks run on %s and see %d GPU%s (CUDA_VISIBLE_DEVICES is %s); each needs one of its own.\n"
                 "%start at most %d rank%s on a node (mpirun --map-by ppr:%d:node, srun --ntasks-per-node=%d), or set "
                 "run.device: cpu.",
                 ranks, host, gpus, many, visible ? visible : "not set",
                 visible || gpus == 1 ? "Let every rank see all GPUs of its node (srun --gpus-per-node, without "
                                        "--gpus-per-task and --gpu-bind), s"
                                      : "S",
                 gpus, many, gpus, gpus);
}

static void check_node(MPI_Comm comm, int gpus, sk_err *e) {
  MPI_Comm node;
  int ranks;
  SK_MPI(MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node));
  SK_MPI(MPI_Comm_size(node, &ranks));
  SK_MPI(MPI_Comm_free(&node));
  sk_device_fits(ranks, gpus, getenv("CUDA_VISIBLE_DEVICES"), sk_host(), e);
}

const sk_ops *sk_device_choose(MPI_Comm comm, int wanted, bool share, bool plan, sk_err *e) {
  sk_err why = {0};
  if (wanted == SK_DEVICE_CPU) return &sk_cpu_ops;
  if (!sk_cuda) {
    if (wanted == SK_DEVICE_AUTO) return &sk_cpu_ops;
    sk_fail(e, SK_USAGE, "run.device: cuda: this program was built without CUDA. Configure it with --with-cuda, or "
                         "set run.device to cpu or auto.");
    return NULL;
  }
  if (wanted == SK_DEVICE_CUDA && plan) return sk_cuda;
  int gpus = sk_cuda->count(&why), most;
  SK_MPI(MPI_Allreduce(&gpus, &most, 1, MPI_INT, MPI_MAX, comm));
  if (wanted == SK_DEVICE_AUTO && most == 0) return &sk_cpu_ops;
  if (gpus == 0) sk_fail(e, SK_FAILED, "run.device: %s: %s", wanted == SK_DEVICE_AUTO ? "auto" : "cuda", why.msg);
  if (!share && !plan) check_node(comm, gpus, e);
  return sk_agree(comm, e) == SK_OK ? sk_cuda : NULL;
}
