"""The root world: machine code that a processor executes outside SEAM, usually an operating system."""
