"""The benchmark: this registry beside pgbench, COPY and the package `eventsourcing`, in one run on one server.

`python -m benchmarks --help` says how; `make bench` runs the whole of it. It is no part of the wheel. The modules,
each above those that it builds on:

    __main__               the command line
    report, document       the tables, and the same as JSON
    rounds                 every contender once a round, each in a database of its own; then the audit of what it wrote
    progress               how far the run has come
    results, targets       medians and ratios, and how large the ratios should be
    contenders             who takes part
    client                 this registry: callers in asyncio and in threads (a process of its own)
    rebuilding             read models of this registry, built and followed (a process of its own)
    eventsourcing_client   the package `eventsourcing` (a process of its own)
    copying                COPY, as the limit of writing and of reading (a process of its own), and to make a large log
    pgbench, statement     pgbench, and the script by which it sends the registry's own statements
    read_models            the read models that are built and followed
    rows, life             commands as rows to copy; one command's life, made by the registry's own code
    processes              running clients
    server, disk, machine  databases for the run; what they take up on disk; what it all runs on
    sample, usage          what a client is told and answers, and the window in which it measures; CPU and memory
    disturbance            how much of the machine others took meanwhile
    queries, errors        every SQL text; what ends the benchmark
"""
