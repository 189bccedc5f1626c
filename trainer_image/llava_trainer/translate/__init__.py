"""Commands of LLaVA's own code, as people copy them, into a manifest: text in, text out.

Nothing that is read is ever run. Neither torch nor transformers is imported: the command line of the operator uses this
package, too.
"""
