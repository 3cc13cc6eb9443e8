//! Signatures others have made, and what nobody may change about our own.

use nave_domain::{MicroUsd, Timestamp, host::Term, rate::Rate};
use proptest::prelude::*;

use super::*;
use crate::wire::{
    enrol::{TICKET_BYTES_MAX, TicketId},
    sign::{PublicKey, sha256},
};

const ALICE: &str = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY";
const NOW: Timestamp = Timestamp(1_790_000_000_000);

fn alice() -> HotkeySecret {
    HotkeySecret::from_uri("//Alice").expect("a URI")
}

fn key(hex: &str) -> Hotkey {
    Hotkey(hex::decode(hex).expect("hex").try_into().expect("32 bytes"))
}

/// From the tests of `@polkadot/wasm-crypto`.
#[test]
fn a_signature_of_a_substrate_wallet_is_accepted() {
    let alice: Hotkey = ALICE.parse().expect("an address");
    assert_eq!(alice, key("d43593c715fdd31c61141abd04a99fd6822c8558854ccde39a5684e7a56da27d"));
    let signature = "1037eb7e51613d0dcf5930ae518819c87d655056605764840d9280984e1b7063\
                     c4566b55bf292fcab07b369d01095879b50517beca4d26e6a65866e25fec0d83";
    let signature = signature.parse().expect("a signature");
    let message = format!("I hereby verify that I control {ALICE}");
    assert_eq!(alice.verify(message.as_bytes(), &signature), Ok(()));
    assert_eq!(alice.verify(b"something else", &signature), Err(BadSignature));
}

/// From the same tests: made by a browser extension, which wraps what it signs.
#[test]
fn a_signature_of_a_wrapped_text_is_accepted_for_the_text() {
    let signer = key("f84d048da2ddae2d9d8fd6763f469566e8817a26114f39408de15547f6d47805");
    let signature = "48ce2c90e08651adfc8ecef84e916f6d1bb51ebebd16150ee12df247841a5437\
                     951ea0f9d632ca165e6ab391532e75e701be6a1caa88c8a6bcca3511f55b4183";
    let signature = signature.parse().expect("a signature");
    assert_eq!(signer.verify(b"message to sign", &signature), Ok(()));
    assert_eq!(signer.verify(b"message to sing", &signature), Err(BadSignature));
}

#[test]
fn an_address_has_a_checksum_and_belongs_to_this_network() {
    assert_eq!(alice().hotkey().to_string(), ALICE);
    let misspelt = ALICE.replace('v', "w");
    assert_eq!(misspelt.parse::<Hotkey>(), Err(BadAddress::Checksum));
    // Alice on Polkadot, prefix 0, and on a network with a prefix of two bytes.
    let polkadot = "15oF4uVJwmo4TdGW7VfQxNLavjCXviqxT9S1MgbjMNHr6Sp5";
    assert_eq!(polkadot.parse::<Hotkey>(), Err(BadAddress::Network));
    for text in ["", "5", "0OIl", &ALICE[1..], &"5".repeat(48), &"z".repeat(10_000)] {
        assert!(text.parse::<Hotkey>().is_err(), "{text}");
    }
}

fn payload() -> TicketPayload {
    TicketPayload {
        url: "https://market.example".to_owned(),
        market_key: PublicKey([1; 32]),
        release_key: None,
        hotkey: String::new(),
        ticket: TicketId([2; 16]),
        expires_at: NOW,
        name: Some("gpu-1".to_owned()),
        rate: Rate { gpu_hour: MicroUsd(1_500_000), ..Rate::default() },
        term: Term::Spot,
        region: None,
        agent_key: None,
        replaces: None,
    }
}

fn ticket() -> Ticket {
    alice().ticket(payload()).expect("a ticket")
}

#[test]
fn a_ticket_survives_its_text_form_and_names_its_signer() {
    let text = ticket().to_string();
    let read: Ticket = text.parse().expect("a ticket");
    assert_eq!(read.verify(), Ok(alice().hotkey()));
    let expected = TicketPayload { hotkey: ALICE.to_owned(), ..payload() };
    assert_eq!(read.payload(), &expected);
    assert!(text.starts_with("nave1.") && text.len() < TICKET_BYTES_MAX && !text.contains('='));
}

#[test]
fn a_ticket_that_a_wallet_has_wrapped_is_accepted() {
    let bytes = ticket().payload_bytes().to_vec();
    let wrapped = [b"<Bytes>", ticket::signed_bytes(&bytes).as_slice(), b"</Bytes>"].concat();
    let ticket = Ticket::new(bytes, alice().sign(&wrapped)).expect("a ticket");
    assert_eq!(ticket.verify(), Ok(alice().hotkey()));
}

#[test]
fn a_ticket_signed_by_another_hotkey_is_refused() {
    let bob = HotkeySecret::from_uri("//Bob").expect("a URI");
    let bytes = ticket().payload_bytes().to_vec();
    let signature = bob.sign(&ticket::signed_bytes(&bytes));
    assert_eq!(Ticket::new(bytes, signature).expect("a ticket").verify(), Err(BadTicket::Signature));
}

#[test]
fn a_signature_for_a_request_is_no_signature_for_a_ticket() {
    let bytes = ticket().payload_bytes().to_vec();
    let ticket = Ticket::new(bytes.clone(), alice().sign(&bytes)).expect("a ticket");
    assert_eq!(ticket.verify(), Err(BadTicket::Signature));
}

#[test]
fn a_ticket_of_another_version_says_so() {
    let text = ticket().to_string().replacen("nave1", "nave2", 1);
    assert_eq!(text.parse::<Ticket>(), Err(BadTicket::Version));
    assert_eq!("naveX.a.b".parse::<Ticket>(), Err(BadTicket::Shape));
}

#[test]
fn a_ticket_with_a_field_nobody_knows_or_an_impossible_one_is_refused() {
    let with = |field: &str, value: serde_json::Value| {
        let mut payload = serde_json::to_value(payload()).expect("JSON");
        payload["hotkey"] = ALICE.into();
        payload[field] = value;
        Ticket::new(payload.to_string().into_bytes(), Signature([0; 64]))
    };
    assert!(with("name", "gpu-2".into()).is_ok());
    let refused = [
        ("admin", true.into()),
        ("url", "ftp://market".into()),
        ("url", "https://a b".into()),
        ("name", "../x".into()),
        ("name", "".into()),
        ("hotkey", "x".repeat(65).into()),
        ("market_key", "ab".into()),
        ("rate", serde_json::json!({ "gpu_hour": -1, "vcpu_hour": 0, "gib_hour": 0 })),
        ("rate", serde_json::json!({ "gpu_hour": 0, "vcpu_hour": 1.5, "gib_hour": 0 })),
        ("term", "forever".into()),
        ("expires_at", "tomorrow".into()),
    ];
    for (field, value) in refused {
        let shown = value.to_string();
        assert!(matches!(with(field, value), Err(BadTicket::Payload(_))), "{field}: {shown}");
    }
}

fn request<'a>(market: &'a PublicKey, body: &'a crate::wire::sign::Sha256) -> Request<'a> {
    Request { market, method: "PATCH", target: "/v1/miner/hosts/host_1?x=1", body }
}

#[test]
fn a_signed_request_fits_its_market_method_target_and_body_only() {
    let (market, body) = (PublicKey([1; 32]), sha256(b"{}"));
    let (other_market, other_body) = (PublicKey([2; 32]), sha256(b""));
    let signed = request(&market, &body);
    let stamp = alice().stamp(&signed, Nonce([3; 16]), NOW);
    assert_eq!(stamp.verify_hotkey(&signed), Ok(alice().hotkey()));
    let others = [
        Request { market: &other_market, ..signed },
        Request { method: "POST", ..signed },
        Request { target: "/v1/miner/hosts/host_2?x=1", ..signed },
        Request { body: &other_body, ..signed },
    ];
    for other in others {
        assert_eq!(stamp.verify_hotkey(&other), Err(BadStamp::Signature), "{other:?}");
    }
    let later = Stamp { expiry: NOW.after(nave_domain::Millis(1)), ..stamp.clone() };
    let reused = Stamp { nonce: Nonce([4; 16]), ..stamp };
    for changed in [later, reused] {
        assert_eq!(changed.verify_hotkey(&signed), Err(BadStamp::Signature));
    }
}

#[test]
fn no_character_of_a_ticket_can_become_another_one() {
    let text = ticket().to_string();
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        // Stays within the alphabets of base64 and of hexadecimal, so that only the signature is in its way.
        bytes[at] = if bytes[at] == b'a' { b'b' } else { b'a' };
        let changed = String::from_utf8(bytes).expect("ASCII");
        let accepted = changed.parse::<Ticket>().is_ok_and(|ticket| ticket.verify().is_ok());
        assert!(!accepted, "{changed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn a_ticket_with_any_byte_changed_is_refused(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let text = ticket().to_string();
        let mut bytes = text.clone().into_bytes();
        let at = at.index(bytes.len());
        prop_assume!(bytes[at] != byte);
        bytes[at] = byte;
        let accepted = String::from_utf8(bytes).ok().and_then(|text| text.parse::<Ticket>().ok());
        prop_assert!(accepted.is_none_or(|ticket| ticket.verify().is_err()));
    }

    #[test]
    fn a_ticket_cut_or_lengthened_is_refused(cut in 0..700_usize, more in "[0-9a-zA-Z._=-]{1,8}") {
        let text = ticket().to_string();
        let cut = text.get(..cut.min(text.len() - 1)).expect("ASCII");
        for text in [cut.to_owned(), format!("{text}{more}"), format!("{more}{text}"), format!("{text}\n")] {
            prop_assert!(text.parse::<Ticket>().ok().is_none_or(|ticket| ticket.verify().is_err()), "{text}");
        }
    }

    #[test]
    fn no_text_makes_the_parsers_panic(text in "\\PC{0,100}", body in "[a-zA-Z0-9_-]{0,100}") {
        let _ = text.parse::<Ticket>();
        let _ = format!("nave1.{body}.{}", "0".repeat(128)).parse::<Ticket>();
        let _ = text.parse::<Hotkey>();
        let _ = body.parse::<Hotkey>();
    }

    #[test]
    fn no_key_and_no_signature_makes_the_check_panic(key in any::<[u8; 32]>(), half in any::<[u8; 32]>(), mark in any::<bool>()) {
        let mut signature = [half, half].concat();
        if mark {
            signature[63] |= 0x80;
        }
        let signature = Signature(signature.try_into().expect("64 bytes"));
        prop_assert!(Hotkey(key).verify(b"", &signature).is_err());
        prop_assert!(PublicKey(key).verify(b"", &signature).is_err());
    }

    #[test]
    fn any_key_survives_its_address(bytes in any::<[u8; 32]>(), at in 0..47_usize) {
        let address = Hotkey(bytes).to_string();
        prop_assert_eq!(address.parse(), Ok(Hotkey(bytes)));
        let mut misspelt = address.clone().into_bytes();
        misspelt[at] = if misspelt[at] == b'7' { b'8' } else { b'7' };
        let read = String::from_utf8(misspelt).expect("ASCII").parse::<Hotkey>();
        // The checksum has 16 bits: one misspelling in 65536 would pass.
        prop_assert_ne!(read, Ok(Hotkey(bytes)));
    }
}
