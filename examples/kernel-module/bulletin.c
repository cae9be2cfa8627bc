// SPDX-License-Identifier: GPL-2.0
/*
 * A page that a TD shares with its host, with a text for everybody to read: what a driver that gives a buffer
 * to a device does.  On the way out the text goes first, and then the page becomes private again.
 */
#include <linux/cc_platform.h>
#include <linux/gfp.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/set_memory.h>
#include <linux/string.h>

static char *text = "hello, host";
module_param(text, charp, 0444);
MODULE_PARM_DESC(text, "what the host may read");

static char *page;

static int __init bulletin_init(void)
{
	int err;

	if (!cc_platform_has(CC_ATTR_GUEST_MEM_ENCRYPT))
		return -ENODEV;
	page = (char *)get_zeroed_page(GFP_KERNEL);
	if (!page)
		return -ENOMEM;
	err = set_memory_decrypted((unsigned long)page, 1);
	if (err)
		return err; /* nobody knows whose the page is now: it is lost */
	/* Only now: what a private page held does not come along, and it must not. */
	strscpy(page, text, PAGE_SIZE);
	pr_info("bulletin: at %llx\n", (unsigned long long)virt_to_phys(page));
	return 0;
}

static void __exit bulletin_exit(void)
{
	memzero_explicit(page, PAGE_SIZE);
	if (!set_memory_encrypted((unsigned long)page, 1))
		free_page((unsigned long)page);
}

module_init(bulletin_init);
module_exit(bulletin_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A page shared with the host");
