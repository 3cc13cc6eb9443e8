//! The points, each with what a crash there would cost if its line were not safe.

/// Every crash point: role or crate, deed, moment.
pub const POINTS: &[&str] = &[
    // --- store: money and state in one transaction.
    // A hold without its job.
    "store.job_submit.before_commit",
    // A job twice, when the customer asks again because no answer came.
    "store.job_submit.after_commit",
    // A lease whose job still waits, or the reverse: the job runs on two hosts.
    "store.job_place.before_commit",
    // A placement that neither the scheduler nor the host was told of: the job hangs.
    "store.job_place.after_commit",
    // A place that is held without its quote, or a quote that holds what another plan gives away.
    "store.quote_answer.before_commit",
    // A place that is held and of which its customer is not told.
    "store.quote_answer.after_commit",
    // A running lease of a job that is still placed, or time used that nobody pays.
    "store.lease_started.before_commit",
    // The rest of a report whose first effect is written down.
    "store.lease_started.after_commit",
    // Metering that goes on after the end.
    "store.lease_exited.before_commit",
    // The rest of a report, as above: the end that follows in it.
    "store.lease_exited.after_commit",
    // A closed lease without its last charge, or a final job that keeps its hold.
    "store.lease_finished.before_commit",
    // An end that the host must report again and that then counts twice.
    "store.lease_finished.after_commit",
    // A lost attempt that is charged, or a job that is not queued again.
    "store.lease_lost.before_commit",
    // A refund that is posted again by the next watch.
    "store.lease_lost.after_commit",
    // A posting whose sum does not stand in the lease and the job.
    "store.lease_charge.before_commit",
    // A charge that is posted again at the next round.
    "store.lease_charge.after_commit",
    // Use that counts in no epoch or in two.
    "store.epoch_close.before_commit",
    // An epoch that is closed and settled by nobody.
    "store.epoch_close.after_commit",
    // Pay that is written and not posted, or a bundle without its epoch.
    "store.epoch_settle.before_commit",
    // An epoch that is settled and whose weights nobody submits.
    "store.epoch_settle.after_commit",
    // A piece of output that readers hear of and cannot read.
    "store.log_append.before_commit",
    // A piece that is stored twice when the host sends it again.
    "store.log_append.after_commit",
    // A result that is there and not named by its job, or sent again.
    "store.blob_put.after_commit",
    // A ticket that is used up and enrolled nobody.
    "store.host_join.before_commit",
    // A key that the hub lets in and the host's spec does not confirm.
    "store.mesh_key_adopt.before_commit",
    // A machine that goes back while its host takes jobs, or a launch that was made and is not noted.
    "store.machine_write.before_commit",
    // A cloud that is not asked for what was written down.
    "store.machine_write.after_commit",
    // Machines that are chosen and not written down: nobody was asked, and others may be chosen.
    "store.machines_want.before_commit",
    // A host whose spec names no challenge while it waits for one.
    "store.challenge_draw.before_commit",
    // An answer that is judged and not stored, or stored and not judged.
    "store.challenge_answer.before_commit",
    // A verdict without its effect on the host.
    "store.challenge_decide.before_commit",
    // --- scheduler
    // A plan that was made and not carried out.
    "scheduler.plan.before_place",
    // Machines that were chosen and not wanted.
    "scheduler.rent.before_want",
    // A host that was found lost, and a lease of it that is not yet given up.
    "scheduler.guard.before_lose",
    // --- verifier: nothing of a challenge is anywhere but in its rows.
    // A challenge that was made up and sent to nobody.
    "verifier.draw.before_store",
    // A nonce that was drawn and not sent: another one must not be taken for it later.
    "verifier.reveal.before_store",
    // A verdict that was reached and not written down: it must come out the same again.
    "verifier.judge.before_store",
    // --- gateway: the store has committed and the caller has no answer.
    "gateway.submit.before_answer",
    // The host was heard, and what it said of its leases is not written down; the same
    // report again is late, so the next one must say it all.
    "gateway.report.before_effects",
    // A challenge that counts as sent and never arrived: the host's time runs.
    "gateway.spec.before_answer",
    // A ticket that was used by a host which does not know its place.
    "gateway.enrol.before_answer",
    // A host that was changed or taken out, and whose owner asks for it again.
    "gateway.miner.before_answer",
    "gateway.report.before_answer",
    "gateway.log.before_answer",
    "gateway.blob.before_answer",
    // --- validator and treasury: between two steps.
    // An event that is decided and not written down: decided anew, and no lease waits for it for ever.
    "validator.events.before_decide",
    // An epoch of which half the evidence is read and a part of the bundle is written.
    "validator.settle.before_leases",
    // Weights that are computed and not written down, then computed anew.
    "validator.settle.before_advance",
    // Weights that the chain has and no row knows of: submitted again.
    "validator.submit.before_advance",
    // Weights that were read back and not confirmed.
    "validator.confirm.before_advance",
    // Some leases charged and others not.
    "treasury.charge.between_leases",
    // --- agent: what the host has done and what it remembers of it.
    // A container that was made and never started.
    "agent.start.after_create",
    // A command that runs and is not noted: it must not run again.
    "agent.start.before_note",
    // An end that is noted and not reported: results and output must not be lost.
    "agent.finish.before_report",
    // Output that was read and not sent.
    "agent.log.before_send",
    // A result that was packed and not sent, or was sent and not reported.
    "agent.result.before_upload",
    "agent.result.after_upload",
    // A lease that was removed and is still remembered.
    "agent.remove.before_forget",
    // A state file that is old, half written, or new and not acted on.
    "agent.state.before_save",
    "agent.state.before_replace",
    "agent.state.after_save",
    // Keys that are there and were never used: the next try must use them again.
    "agent.enrol.after_keys",
    // A ticket that is used up and a host that does not know its place.
    "agent.enrol.before_save",
    // A place in the market with a mesh key that lies beside the one in use.
    "agent.enrol.before_settle",
    // A mesh key that was thought of and not written down.
    "agent.rotate.before_make",
    // A next key that nobody was told of.
    "agent.rotate.after_make",
    // A next key that the hub lets in, and an interface that still speaks with the old one.
    "agent.rotate.before_switch",
    // A key that the market has confirmed and the disk calls the next.
    "agent.rotate.before_settle",
    // A key that the market knows and the agent does not know that it knows.
    "agent.rotate.after_ack",
    // A program that was fetched and lies beside its place.
    "agent.upgrade.before_place",
    // A program whose first start is written down and that was never started.
    "agent.upgrade.before_exec",
    // A program that failed, and the old one is not back yet.
    "agent.upgrade.before_fall",
    // A challenge that was received and is worked on by nobody.
    "agent.proof.before_start",
    // A disk that knows one key and an interface that may speak with another.
    "agent.rotate.after_settle",
    // --- hub: who is let in, and what rows say of it.
    // An interface that is up, of which hosts are not told.
    "hub.start.before_announce",
    // Rows that were read and not carried out: somebody is let in, or kept out, too long.
    "hub.peers.before_apply",
    // A host that is let in with its next key and told so by nobody.
    "hub.key.before_adopt",
    // --- supervisor
    // A part that runs and is recorded nowhere.
    "up.part.after_spawn",
];
