//! The metrics of stack walks and of what they need.

use super::own::{Own, by_result};
use super::writer::{Family, Type, Value};
use crate::telemetry::{FirstStacks, Telemetry, UnwindTelemetry};

pub(super) fn write(own: &mut Own<'_>, telemetry: &Telemetry) {
    own.by(
        "tieback_unwind_total",
        Type::Counter,
        "Stack walks by result.",
        by_result(&telemetry.unwind),
    );
    first_stacks(own, &telemetry.first_stacks);
    tables(own, &telemetry.unwind_tables);
    own.by(
        "tieback_interpreters_total",
        Type::Counter,
        "Programs seen with a CPython interpreter: `walked`, or why frames of Python are not (`old`: before 3.11; `version`: an \
         unknown one; `layout`: not that of its version, or no global lock; `memory`: not readable).",
        by_result(&telemetry.unwind_tables.interpreters),
    );
}

fn first_stacks(own: &mut Own<'_>, first: &FirstStacks) {
    const NAME: &str = "tieback_unwind_first_stack_seconds";
    own.out.family(Family {
        name: NAME,
        kind: Type::Histogram,
        help: "Time from the start of a program to its first whole stack, to the tenth of a second; programs that hardly run are late.",
    });
    for (bound, count) in first.cumulated() {
        let bound = bound.to_string();
        own.out
            .sample(NAME, "_bucket", "", &[("le", &bound)], Value::Int(count));
    }
    own.out
        .sample(NAME, "_bucket", "", &[("le", "+Inf")], Value::Int(first.count));
    own.out.sample(NAME, "_sum", "", &[], Value::Float(first.sum));
    own.out.sample(NAME, "_count", "", &[], Value::Int(first.count));
}

fn tables(own: &mut Own<'_>, tables: &UnwindTelemetry) {
    own.counter(
        "tieback_unwind_tables_total",
        "Unwind tables made, one for each executable.",
        Value::Int(tables.built),
    );
    own.by(
        "tieback_unwind_tables_refused_total",
        Type::Counter,
        "Executables without an unwind table, by reason; stacks through them are walked by frame pointers.",
        tables
            .refused
            .iter()
            .map(|(reason, &count)| (vec![("reason", reason.as_str())], Value::Int(count))),
    );
    own.counter(
        "tieback_unwind_functions_refused_total",
        "Functions whose call frame information could not be read.",
        Value::Int(tables.broken_functions),
    );
    own.by(
        "tieback_unwind_rows_unsupported_total",
        Type::Counter,
        "Rows of unwind tables with something that the walk does not know, by reason; `frame_pointer`: only the caller's is lost.",
        tables
            .unsupported_rows
            .iter()
            .map(|(reason, &count)| (vec![("reason", reason.as_str())], Value::Int(count))),
    );
    own.counter(
        "tieback_unwind_table_seconds_total",
        "Seconds spent on making unwind tables.",
        Value::Float(tables.build_seconds),
    );
    own.gauge(
        "tieback_unwind_table_bytes",
        "Bytes of kernel memory for the rows of unwind tables; part of tieback_agent_bpf_map_bytes.",
        Value::Int(tables.row_bytes),
    );
}
