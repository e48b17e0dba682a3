/* Counts the instructions that an emulated process executes, and notes the count whenever the process asks for it.
 *
 *     qemu-aarch64 -plugin libharmony_count.so,out=COUNTS -d plugin program…
 *
 * The process asks by the system call getppid, which C, C++ and Python can all make and which nothing else here does.
 * COUNTS gets one line for each: the instructions so far. A block of code is counted when it is entered, so the count is
 * exact where blocks run to their ends, and the same in every run in any case. One thread; others would be miscounted,
 * so they are refused: the last line is then "threads".
 *
 * Debian's qemu-user loads plugins but ships no header, so the few functions used are declared here, as documented in
 * QEMU's "TCG Plugins".
 */
#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*block_translated)(qemu_plugin_id_t id, struct qemu_plugin_tb* block);
typedef void (*block_entered)(unsigned int cpu, void* data);
typedef void (*system_called)(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2,
                              uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);
typedef void (*cpu_begun)(qemu_plugin_id_t id, unsigned int cpu);

void qemu_plugin_register_vcpu_init_cb(qemu_plugin_id_t id, cpu_begun callback);
void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, block_translated callback);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, system_called callback);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
/* Quicker than a call, but only QEMU before 9 has it. */
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb* block, enum qemu_plugin_op operation, void* counter,
                                              uint64_t step) __attribute__((weak));
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb* block, block_entered callback,
                                          enum qemu_plugin_cb_flags flags, void* data);

/* The release of the interface: 1 before QEMU 9, from which on 2 is the least. */
EXPORT int qemu_plugin_version = HARMONY_PLUGIN_VERSION;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int count, char** options);

static const int64_t kGetppid = 173; /* on aarch64 */
static uint64_t counted;
static FILE* out;

static void on_entered(unsigned int cpu, void* data) {
  (void)cpu;
  counted += (uintptr_t)data;
}

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  const size_t instructions = qemu_plugin_tb_n_insns(block);
  (void)id;
  if (qemu_plugin_register_vcpu_tb_exec_inline) {
    qemu_plugin_register_vcpu_tb_exec_inline(block, QEMU_PLUGIN_INLINE_ADD_U64, &counted, instructions);
  } else {
    qemu_plugin_register_vcpu_tb_exec_cb(block, on_entered, QEMU_PLUGIN_CB_NO_REGS, (void*)(uintptr_t)instructions);
  }
}

/* Written at once: the process may end by a signal. */
static void on_called(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                      uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)cpu, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != kGetppid) return;
  fprintf(out, "%" PRIu64 "\n", counted);
  fflush(out);
}

static void on_begun(qemu_plugin_id_t id, unsigned int cpu) {
  (void)id;
  if (cpu == 0) return;
  fputs("threads\n", out);
  fflush(out);
}

int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int count, char** options) {
  (void)info;
  for (int i = 0; i < count; ++i) {
    if (strncmp(options[i], "out=", 4) == 0) out = fopen(options[i] + 4, "we");
  }
  if (out == NULL) {
    fputs("the plugin needs out=FILE, a file that can be written\n", stderr);
    return 1;
  }
  qemu_plugin_register_vcpu_init_cb(id, on_begun);
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
  qemu_plugin_register_vcpu_syscall_cb(id, on_called);
  return 0;
}
