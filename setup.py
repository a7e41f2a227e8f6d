# pip runs setup.py; the build itself is setup_ops.py.
__import__("runpy").run_path("setup_ops.py", run_name="__main__")
