//! softirqs against the counts of /proc/softirqs, and its times against those of what soft interrupts were handled in.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use tests::{Outcome, Stop, Tool, check, check_eq, is_emulated, live_tests};

use crate::hardirqs::{Counts, compare, counted, observe, parts, together};

live_tests! {
    every_soft_interrupt_is_counted,
    every_soft_interrupt_is_counted_by_raw_tracepoint,
    every_soft_interrupt_is_in_a_histogram,
    a_cpu_is_chosen,
    soft_interrupts_and_those_that_found_no_room_make_the_truth,
    intervals_add_up,
    text_is_the_familiar_table,
}

/// Packets to ourselves: each is received in a soft interrupt, on the way out of the system call that sends it.
const PACKETS: u64 = 5000;

fn send() -> Outcome {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let to = socket.local_addr()?;
    let mut packet = [0; 16];
    for _ in 0..PACKETS {
        socket.send_to(&packet, to)?;
        socket.recv(&mut packet)?;
    }
    Ok(())
}

/// Vectors are called as in the kernel's table, in capitals.
fn lowered(counts: Counts) -> Counts {
    counts.into_iter().map(|((name, cpu), count)| ((name.to_lowercase(), cpu), count)).collect()
}

fn check_counts(args: &str) -> Outcome {
    let begin = Instant::now();
    let (finished, least, most) = observe("softirqs", &format!("--per-cpu {args}"), "/proc/softirqs", send)?;
    let rows = parts(&finished.clean()?, "rows")?;
    let elapsed_ns = begin.elapsed().as_nanos() as u64;
    compare(&counted(&rows, "softirq"), &lowered(least), &lowered(most))?;
    let received: Vec<_> = rows.iter().filter(|row| row["softirq"] == "net_rx").collect();
    let sum = |key: &str| received.iter().filter_map(|row| row[key].as_u64()).sum::<u64>();
    check!(sum("count") >= PACKETS / 2, "{rows:?}");
    if args.contains("-C") {
        check!(rows.iter().all(|row| row["total_ns"].is_null()), "{rows:?}");
        return Ok(());
    }
    // A packet takes 0.1 us at the least, and all of them cannot take longer than there was time.
    check!(sum("total_ns") >= sum("count") * 100, "{rows:?}");
    for row in &rows {
        let number = |key: &str| row[key].as_u64().unwrap_or(0);
        check!(number("total_ns") < elapsed_ns, "{row} in {elapsed_ns} ns");
        check!(number("max_ns") <= number("total_ns"), "{row}");
        check!(number("total_ns") <= number("max_ns").saturating_mul(number("count")), "{row}");
    }
    Ok(())
}

fn every_soft_interrupt_is_counted() -> Outcome {
    check_counts("")?;
    check_counts("-C")
}

fn every_soft_interrupt_is_counted_by_raw_tracepoint() -> Outcome {
    check_counts("--hook raw_tp")
}

fn every_soft_interrupt_is_in_a_histogram() -> Outcome {
    let (finished, least, most) = observe("softirqs", "-d", "/proc/softirqs", send)?;
    let histograms = parts(&finished.clean()?, "histograms")?;
    compare(&counted(&histograms, "softirq"), &together(&lowered(least)), &together(&lowered(most)))
}

fn a_cpu_is_chosen() -> Outcome {
    for cpu in [0, 1] {
        let (finished, least, most) = match observe("softirqs", &format!("--per-cpu -c {cpu}"), "/proc/softirqs", send)
        {
            Err(Stop::Fail(text)) if text.contains("the CPUs here are") => continue,
            observed => observed?,
        };
        let rows = parts(&finished.clean()?, "rows")?;
        check!(rows.iter().all(|row| row["cpu"] == cpu), "{rows:?}");
        let only = |counts: Counts| lowered(counts).into_iter().filter(|((_, on), _)| *on == cpu).collect::<Counts>();
        compare(&counted(&rows, "softirq"), &only(least), &only(most))?;
    }
    Ok(())
}

fn soft_interrupts_and_those_that_found_no_room_make_the_truth() -> Outcome {
    let (finished, least, most) =
        observe("softirqs", "--map-entries irq_even=1 --map-entries irq_odd=1", "/proc/softirqs", send)?;
    let rows = parts(&finished, "rows")?;
    let lost = finished.lost("keys")?;
    check!(rows.len() == 1 && lost > 0, "{lost} found no room: {rows:?}");
    check!(finished.stderr.contains("the table was full"), "losses are said: {}", finished.stderr);
    let found = counted(&rows, "softirq").values().sum::<u64>() + lost;
    let (least, most): (u64, u64) = (least.values().sum(), most.values().sum());
    let hidden = if is_emulated() { 0 } else { 2 };
    check!((least.saturating_sub(hidden)..=most).contains(&found), "{found} counted of {least} to {most}");
    Ok(())
}

fn intervals_add_up() -> Outcome {
    let (finished, least, most) = observe("softirqs", "0.1", "/proc/softirqs", || {
        send()?;
        std::thread::sleep(Duration::from_millis(400));
        Ok(())
    })?;
    check!(finished.records()?.len() > 3, "{}", finished.stdout);
    let rows = parts(&finished.clean()?, "rows")?;
    compare(&counted(&rows, "softirq"), &together(&lowered(least)), &together(&lowered(most)))
}

fn text_is_the_familiar_table() -> Outcome {
    for (args, head) in [
        ("", "SOFTIRQ VEC TOTAL_count TOTAL_usecs MAX_usecs"),
        ("-N --per-cpu", "SOFTIRQ VEC CPU TOTAL_count TOTAL_nsecs MAX_nsecs"),
        ("--events", "SOFTIRQ VEC TOTAL_count"),
    ] {
        let finished = Tool::new("softirqs").args(&format!("-T {args} 0.3 2")).start()?.wait()?.clean()?;
        check_eq!(finished.stdout.lines().next(), Some("Tracing soft irq event time... Hit Ctrl-C to end."));
        let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        check_eq!(finished.stdout.lines().filter(|line| words(line) == head).count(), 2, "{}", finished.stdout);
    }
    let finished = Tool::new("softirqs").args("-d -N 0.3 1").start()?.wait()?.clean()?;
    check!(finished.stdout.contains("     nsecs               : count    distribution\n"), "{}", finished.stdout);
    Ok(())
}
