"""What tests share.

Run commands:
    processes   run train.py, resume.py and other programs: in a fresh interpreter, or as a fork of a warm process
    zygote      the warm process: it has imported torch once, and forks a child for each command
    stores      a run that logs, and what MLflow's database holds
    kept        what each kind of tracker has stored, in one form
    warm        warm interpreters, which run a command line of Python as a fork
    workshop    a copy of the repository whose default directories a test may use, with faulty models and odd data in it

Interrupt them:
    moments     send a signal, or kill a loading worker, at the n-th moment of a training
    signalled   send a signal while another thread writes a checkpoint
    disk        watch a disk, cut it off at any moment, or make it fail
    saving      save checkpoints one after the other, as training does, and say which are durable

Compare them:
    trial       one trial of the promise: an uninterrupted run and an interrupted, resumed one must be equal
    without     resume a run and leave out one thing that must be restored: the negative controls
    chaos       trials of random configs, interrupted at random, for as long as asked (`make chaos`)

Choose what to run:
    draws       draw the parts of a trial at random from all of conf/
    grid        the options of conf/, and a few runs in which each pair of options that fit meets at least once
    trees       nested states of every kind, for hypothesis

Parts to train with:
    faulty      models with one fault each
    sources     data sets and samplers of every kind
    inexact     data sets, models and tasks that cannot be resumed exactly, one fault each
"""
