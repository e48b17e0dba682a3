/* Counts the instructions that an emulated process executes, and notes the count whenever the process asks for it.
 *
 *     qemu-aarch64 -plugin libharmony_count.so,out=COUNTS -d plugin program…
 *
 * The process asks by the system call getppid, which nothing else here makes. COUNTS gets one line for each call of the
 * first thread: its instructions so far, and those of all other threads. A block of code is counted when it is entered,
 * so the count is exact where blocks run to their ends, and the same in every run in any case.
 *
 * Debian's qemu-user loads plugins but ships no header, so the few functions used are declared here, as documented in
 * QEMU's "TCG Plugins".
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t qemu_plugin_id_t;
typedef struct qemu_info_t qemu_info_t;
struct qemu_plugin_tb;
enum qemu_plugin_cb_flags { QEMU_PLUGIN_CB_NO_REGS };

typedef void (*block_translated)(qemu_plugin_id_t id, struct qemu_plugin_tb* block);
typedef void (*block_entered)(unsigned int cpu, void* data);
typedef void (*system_called)(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2,
                              uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8);

void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, block_translated callback);
void qemu_plugin_register_vcpu_syscall_cb(qemu_plugin_id_t id, system_called callback);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb* block);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb* block, block_entered callback,
                                          enum qemu_plugin_cb_flags flags, void* data);

/* The release of the interface: 1 before QEMU 9, from which on 2 is the least. */
EXPORT int qemu_plugin_version = HARMONY_PLUGIN_VERSION;
EXPORT int qemu_plugin_install(qemu_plugin_id_t id, const qemu_info_t* info, int count, char** options);

static const int64_t kGetppid = 173; /* on aarch64 */
static uint64_t mine; /* of the first thread, which alone writes it */
static _Atomic uint64_t others;
static FILE* out;

/* Not by QEMU's own inline counters: they are no quicker here, and their interface changed. */
static void on_entered(unsigned int cpu, void* data) {
  if (cpu == 0) {
    mine += (uintptr_t)data;
  } else {
    others += (uintptr_t)data;
  }
}

static void on_translated(qemu_plugin_id_t id, struct qemu_plugin_tb* block) {
  (void)id;
  void* const instructions = (void*)(uintptr_t)qemu_plugin_tb_n_insns(block);
  qemu_plugin_register_vcpu_tb_exec_cb(block, on_entered, QEMU_PLUGIN_CB_NO_REGS, instructions);
}

/* Written at once: the process may end by a signal. */
static void on_called(qemu_plugin_id_t id, unsigned int cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                      uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)a1, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
  if (number != kGetppid || cpu != 0) return;
  fprintf(out, "%" PRIu64 " %" PRIu64 "\n", mine, (uint64_t)others);
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
  qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
  qemu_plugin_register_vcpu_syscall_cb(id, on_called);
  return 0;
}
