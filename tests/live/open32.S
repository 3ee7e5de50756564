# A 32-bit program without a library: open("/etc/hostname"), openat(AT_FDCWD, "/nowhere/32"), exit(0).
	.globl _start
_start:
	movl $5, %eax
	movl $there, %ebx
	xorl %ecx, %ecx
	int $0x80
	movl $295, %eax
	movl $-100, %ebx
	movl $nowhere, %ecx
	xorl %edx, %edx
	int $0x80
	movl $1, %eax
	xorl %ebx, %ebx
	int $0x80
there:	.asciz "/etc/hostname"
nowhere: .asciz "/nowhere/32"
	.section .note.GNU-stack,"",@progbits
