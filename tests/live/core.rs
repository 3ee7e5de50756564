//! The parts that every tool shares, in the kernel and out of it.

use std::process::Command;

use serde_json::Value;
use tests::{Outcome, Stop, binary, check, check_eq, is_emulated, live_tests};

live_tests! {
    the_stream_carries_two_and_a_half_million_events_a_second,
    percentiles_are_those_of_the_values,
    percentiles_by_key_are_those_of_the_values,
    every_key_of_a_large_table_is_read,
    the_rung_tp_btf_counts_all,
    the_rung_raw_tp_counts_all,
    the_rung_tp_counts_all,
    the_rung_fentry_counts_all,
    the_rung_kprobe_counts_all,
}

fn selftest(args: &[&str]) -> Outcome<Value> {
    let output = Command::new(binary("selftest")).args(args).output()?;
    let stderr = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.code() == Some(3) {
        return Err(Stop::Skip(stderr));
    }
    check!(output.status.success(), "{stderr}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn the_stream_carries_two_and_a_half_million_events_a_second() -> Outcome {
    if std::thread::available_parallelism()?.get() < 2 {
        return Err(Stop::Skip("one CPU cannot produce and consume at once".into()));
    }
    // An instant in which this machine gave the reader no CPU is not the stream's doing, so the best of five counts.
    let (rate, wanted) = if is_emulated() { ("100000", 90_000.0) } else { ("2600000", 2_500_000.0) };
    let mut last = Value::Null;
    for _ in 0..5 {
        last = selftest(&["stream", rate, "1"])?;
        let (sent, arrived, lost) = (last["sent"].as_u64(), last["arrived"].as_u64(), last["lost"].as_u64());
        check_eq!(sent, arrived.zip(lost).map(|(arrived, lost)| arrived + lost), "{last}");
        check_eq!(last["in_order"], true);
        if lost == Some(0) && last["rate"].as_f64() >= Some(wanted) {
            return Ok(());
        }
    }
    Err(format!("{last}").into())
}

fn compare(kind: &str) -> Outcome {
    let report = selftest(&["hist", kind])?;
    let (measured, exact) = (&report["measured"], &report["exact"]);
    for key in ["count", "sum_ns", "max_ns"] {
        check_eq!(measured[key], exact[key], "{key}");
    }
    for key in ["p50_ns", "p90_ns", "p99_ns", "p99_9_ns"] {
        let (got, truth) = (measured[key].as_f64().ok_or("none")?, exact[key].as_f64().ok_or("none")?);
        check!((got - truth).abs() <= truth * 0.05, "{key}: {got} for {truth}");
    }
    Ok(())
}

fn percentiles_are_those_of_the_values() -> Outcome {
    compare("plain")
}

fn percentiles_by_key_are_those_of_the_values() -> Outcome {
    compare("keyed")
}

fn every_key_of_a_large_table_is_read() -> Outcome {
    for count in ["1", "1024", "1025", "30000", "65536"] {
        let report = selftest(&["keys", count])?;
        check_eq!(report["read"], report["counted"]);
    }
    Ok(())
}

fn count_by(rung: &str) -> Outcome {
    let report = selftest(&["ladder", rung])?;
    check_eq!(report["counted"], report["opens"]);
    Ok(())
}

fn the_rung_tp_btf_counts_all() -> Outcome {
    count_by("tp_btf")
}

fn the_rung_raw_tp_counts_all() -> Outcome {
    count_by("raw_tp")
}

fn the_rung_tp_counts_all() -> Outcome {
    count_by("tp")
}

fn the_rung_fentry_counts_all() -> Outcome {
    count_by("fentry")
}

fn the_rung_kprobe_counts_all() -> Outcome {
    count_by("kprobe")
}
