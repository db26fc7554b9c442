/* The init of kernel-config/boot-cost: tells the time stamp counter, which counts instructions there, and resets. */
static long call(long number, long a, long b, long c, long d)
{
    long result;
    register long r10 __asm__("r10") = d;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
    return result;
}

void _start(void)
{
    unsigned int low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    unsigned long count = (unsigned long)high << 32 | low;
    char text[48];
    int at = sizeof text;
    do {
        text[--at] = (char)('0' + count % 10);
        count /= 10;
    } while (count);
    static const char prefix[] = "<0>boot-cost: ";
    for (int i = sizeof prefix - 1; i > 0; i--)
        text[--at] = prefix[i - 1];
    call(133, (long)"/kmsg", 020600, 1 << 8 | 11, 0); /* mknod(2) */
    long kmsg = call(2, (long)"/kmsg", 1, 0, 0); /* open(2), O_WRONLY */
    call(1, kmsg, (long)(text + at), (long)sizeof text - at, 0);
    call(169, 0xfee1dead, 672274793, 0x01234567, 0); /* reboot(2), LINUX_REBOOT_CMD_RESTART */
    for (;;)
        ;
}
