/* The mark that the plugin notes. Asked of the kernel by number: a C library might keep the answer. */
#ifndef HARMONY_MARK_H
#define HARMONY_MARK_H

#include <sys/syscall.h>
#include <unistd.h>

static inline void mark(void) { (void)syscall(SYS_getppid); }

#endif
