"""The TDX Module: trusted, reached only through SEAMCALL and TDCALL."""
