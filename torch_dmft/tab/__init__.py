"""The DMFT tab of TensorBoard: records beside the event files, a reader of its own, a page, and the page as one HTML file.

Nothing here needs torch or matplotlib: TensorBoard loads this package whenever it starts.
"""
